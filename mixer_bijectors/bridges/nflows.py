"""Flows as transforms of nflows, and transforms of nflows as flows.

nflows takes long to import, which is left to those who use it.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .._checks import check_context, imported_class
from ..declarations import check_flow
from ..flow import Flow, apply_flow

if TYPE_CHECKING:
    from nflows.transforms import Transform

__all__ = ["TransformAsFlow", "from_nflows", "to_nflows"]


def to_nflows(flow: Flow) -> "Transform":
    """A flow of this library or of normflows as an `nflows.transforms.Transform`.

    nflows runs the other way: its `forward` maps data to noise. Parameters are shared, and
    context is handed on to a flow that takes one. `from_nflows` gives the flow back. Without
    it, a flow among transforms of nflows would run backwards, and is refused.

    Args:
        flow: maps (batch, ...) to (batch, ...) either way.

    Raises:
        TypeError: what is not a flow; of a model, take `mb.Chain(model.flows)`.

    Example:
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from nflows.transforms import CompositeTransform, ReversePermutation
        >>> layers = [to_nflows(mb.Coupling(6)), ReversePermutation(6)]
        >>> Flow(CompositeTransform(layers), StandardNormal([6])).sample(10).shape
        torch.Size([10, 6])
    """
    from .flow_as_transform import FlowAsTransform

    if isinstance(flow, TransformAsFlow):
        return flow.transform
    check_flow("to_nflows", flow)
    return FlowAsTransform(flow)


def from_nflows(transform: "Transform", *, context_features: int | None = None) -> Flow:
    """An `nflows.transforms.Transform` as a flow of normflows.

    Parameters are shared. `InverseNotAvailable`, where the transform cannot sample, and
    `InputOutsideDomain` are raised by nflows. `to_nflows` gives the transform back.

    Args:
        transform: maps data to noise.
        context_features: size of the context that the transform reads, where it holds other
            nets than those of nflows, of which the size is known.

    Raises:
        TypeError: what is not a transform of nflows.
        ValueError: from the flow, a context that is missing or of another shape.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> layer = from_nflows(MaskedAffineAutoregressiveTransform(6, hidden_features=16))
        >>> base = nf.distributions.DiagGaussian(6)
        >>> model = nf.NormalizingFlow(base, [layer, mb.LULinear(6)])
        >>> model.log_prob(torch.randn(10, 6)).shape
        torch.Size([10])
    """
    if not isinstance(transform, imported_class("nflows.transforms.base", "Transform")):
        raise TypeError(
            f"from_nflows: expected a transform of nflows, got {type(transform).__name__}"
        )
    from .flow_as_transform import FlowAsTransform

    if isinstance(transform, FlowAsTransform):
        return transform.flow
    if context_features is None:
        context_features = _find_context_features(transform)
    return TransformAsFlow(transform, context_features)


class TransformAsFlow(Flow):
    """Runs a transform of nflows from latent to data in `forward`, as normflows does."""

    def __init__(self, transform: "Transform", context_features: int | None) -> None:
        super().__init__()
        self.transform = transform
        self.context_features = context_features

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.transform, z, self._checked(context, z), inverse=True)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.transform, x, self._checked(context, x))

    def _checked(self, context: Tensor | None, x: Tensor) -> Tensor | None:
        # nflows itself would take a missing context for zeros, and broadcast a single row.
        if not self.context_features:
            return context if self.context_features is None else None
        name = type(self.transform).__name__
        return check_context(name, context, x.shape[0], self.context_features)


def _find_context_features(transform: "Transform") -> int | None:
    """Size of the context that a transform reads; None if a part does not declare it."""
    sizes = {0}
    for module in transform.modules():
        layer = getattr(module, "context_layer", None)
        if isinstance(layer, nn.Linear):
            sizes.add(layer.in_features)
        elif getattr(module, "context_features", None):
            sizes.add(module.context_features)
        package = type(module).__module__.partition(".")[0]
        # A context of channels, for convolutions, is not one of features.
        own = package in ("torch", "nflows", "normflows", "mixer_bijectors")
        if not own or getattr(module, "context_channels", None):
            return None
    return max(sizes)
