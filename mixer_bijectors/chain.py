"""Composition of flows."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .bijection import Bijection
from .declarations import chain_context, chain_shapes, check_flow
from .flow import Flow, apply_flows
from .layers.alternation import warn_unless_alternating

__all__ = ["Chain"]


class Chain(Bijection):
    r"""Composition of flows in the order of normflows: `forward` applies `flows[0]` first.

    Unlike `normflows.flows.Composite` it hands `context` on, to the flows that take one, and
    its log-determinant lives on the device and in the dtype of the input. What it declares of
    events and context follows from the flows.

    Args:
        flows: the flows to compose, of this library or of normflows; each maps events of the
            shape that the one before it returns.

    Raises:
        TypeError: what is not a flow, such as a transform of nflows, a model or a class.
        ValueError: flows that declare events of different shapes, or contexts of different
            sizes.

    Example:
        >>> flow = Chain([mb.LULinear(6), mb.ActNorm(6)])
        >>> x, log_det = flow(torch.randn(10, 6))
        >>> x.shape, log_det.shape, flow.event_shape
        (torch.Size([10, 6]), torch.Size([10]), (6,))
    """

    holds_flows = True

    def __init__(self, flows: Iterable[Flow]) -> None:
        flows = list(flows)
        name = type(self).__name__
        for flow in flows:
            check_flow(name, flow)
        latent_shape, event_shape = chain_shapes(name, flows)
        super().__init__(event_shape, context_features=chain_context(name, flows))
        self.latent_shape = latent_shape  # which may be known where the other is not
        self.flows = nn.ModuleList(flows)
        warn_unless_alternating(self.flows, name=name, stacklevel=2)

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor]:
        return apply_flows(self.flows, x, context, inverse=inverse, **options)
