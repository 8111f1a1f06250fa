"""How any flow is run: with a context if it takes one, and always with a full log_det."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import normflows as nf
import torch
from normflows.flows import Flow
from torch import Tensor, nn

from ._checks import imported_class
from ._graphs import constant_in_graphs
from ._repr import format_event
from .bijection import Bijection, Shape, complete_log_det
from .layers.alternation import warn_unless_alternating

__all__ = [
    "Chain",
    "Flow",
    "apply_flow",
    "apply_flows",
    "call_flow",
    "chain_context",
    "chain_shapes",
    "check_flow",
    "context_features",
    "event_shapes",
    "no_autocast",
    "shapes_agree",
]


@constant_in_graphs
def _takes_context(flow_type: type, method: str) -> bool:
    return _signature_takes_context(getattr(flow_type, method))


@functools.cache
def _signature_takes_context(function: Callable[..., object]) -> bool:
    parameters = inspect.signature(function).parameters
    return "context" in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )


def context_features(flow: nn.Module) -> int | None:
    """Size of the context that a flow reads, 0 if it reads none; None where nothing tells.

    A `Bijection`, or any flow with an attribute `context_features`, declares it. For the layers
    of normflows it is read off their nets. Another flow whose signature takes a context gets
    one, but does not count as conditional until it declares `context_features`: it may drop it.
    """
    flow = _wrapped(flow)
    if isinstance(flow, Bijection) or hasattr(flow, "context_features"):
        declared: Any = flow.context_features
        return declared
    if not isinstance(flow, Flow) or not _takes_context(type(flow), "inverse"):
        return 0
    if type(flow).inverse.__module__.split(".")[0] != "normflows":
        return None
    for module in flow.modules():
        layer = getattr(module, "context_layer", None)
        size = getattr(layer, "in_features", None) or getattr(module, "context_features", None)
        if size:
            return int(size)
    return 0


def event_shapes(flow: nn.Module) -> tuple[Shape | None, Shape | None]:
    """Shapes of the latents and of the data of a flow; None where it does not declare them."""
    declared: Any = _wrapped(flow)
    if hasattr(declared, "event_shape"):
        return declared.latent_shape, declared.event_shape
    if type(declared) is nf.flows.Reverse:
        return event_shapes(declared.flow)[::-1]
    if type(declared) is nf.flows.Composite:
        return chain_shapes("Composite", list(declared._flows))
    return None, None


def check_flow(name: str, flow: object) -> None:
    """Refuse what is not a flow, above all what runs in the other direction."""
    flow = getattr(flow, "_orig_mod", flow)
    if isinstance(flow, imported_class("nflows.transforms.base", "Transform")):
        raise TypeError(
            f"{name}: {type(flow).__name__} is a transform of nflows, which runs from data to "
            "latent; wrap it in from_nflows(transform)"
        )
    if isinstance(flow, nf.NormalizingFlow | nf.MultiscaleFlow):
        raise TypeError(
            f"{name}: {type(flow).__name__} is a model; take its flows, Chain(model.flows)"
        )
    if isinstance(flow, type):
        raise TypeError(
            f"{name}: expected a flow, got the class {flow.__name__}; build it first"
        )
    if not (isinstance(flow, nn.Module) and hasattr(flow, "inverse")):
        raise TypeError(
            f"{name}: expected a flow of normflows, got {type(flow).__name__}; a flow has "
            "forward and inverse, each of which returns the result and its log_det"
        )


def call_flow(
    flow: Flow, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
) -> tuple[Tensor, Any]:
    """Run one direction of `flow`; `context` is handed on if its signature takes one."""
    method = "inverse" if inverse else "forward"
    run = flow.inverse if inverse else flow  # calling the module runs its forward hooks
    if context is not None and _takes_context(type(_wrapped(flow)), method):
        return run(x, context=context)
    return run(x)


def apply_flow(
    flow: Flow, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run one direction of `flow` by this library's conventions, whatever its own are.

    A log-determinant that is a number, a 0-d tensor or of shape (1,), as some layers of
    normflows return it, is broadcast to (batch,).
    """
    y, log_det = call_flow(flow, x, context, inverse=inverse)
    return y, complete_log_det(type(flow).__name__, x, log_det)


def apply_flows(
    flows: nn.ModuleList | Sequence[Flow],
    x: Tensor,
    context: Tensor | None = None,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run flows one after the other, `flows[0]` first, or last when `inverse`.

    A list that `reversible` has made has a `whole`, which runs them in its own way.
    """
    whole = getattr(flows, "whole", None)
    if whole is not None:
        return whole.run(x, context, inverse=inverse)
    total = x.new_zeros(x.shape[:1])
    for flow in reversed(flows) if inverse else flows:
        x, log_det = apply_flow(flow, x, context, inverse=inverse)
        total = total + log_det
    return x, total


def no_autocast(x: Tensor) -> torch.autocast:
    """Keep a bijection's own arithmetic in the precision of `x`: bfloat16 does not invert."""
    device = "cpu" if x.device.type == "meta" else x.device.type
    return torch.autocast(device, enabled=False)


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
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        return apply_flows(self.flows, x, context, inverse=inverse)


def chain_context(name: str, flows: Sequence[Flow]) -> int | None:
    """Size of the context that the flows read; None if one of them does not tell."""
    sizes = [context_features(flow) for flow in flows]
    known = sorted({size for size in sizes if size})
    if len(known) > 1:
        raise ValueError(
            f"{name}: the flows read contexts of different sizes, {known[0]} and {known[1]}; "
            "all of them get the same context"
        )
    return known[0] if known else None if None in sizes else 0


def chain_shapes(name: str, flows: Sequence[Flow]) -> tuple[Shape | None, Shape | None]:
    """Shapes of the latents and of the data, as far as the flows declare them."""
    state: Shape | None = None
    event: Shape | None = None
    # Whether the data have the shape of the state, since all flows so far keep it.
    keeps = True
    for position in range(len(flows) - 1, -1, -1):
        latent_shape, event_shape = event_shapes(flows[position])
        if (
            state is not None
            and event_shape is not None
            and not shapes_agree(state, event_shape)
        ):
            raise ValueError(
                f"{name}: flows[{position + 1}] ({type(flows[position + 1]).__name__}) hands "
                f"latents of shape {format_event(state)} to flows[{position}] "
                f"({type(flows[position]).__name__}), which is for {format_event(event_shape)}"
            )
        if event_shape is None:
            state, keeps = latent_shape, False
            continue
        state = _join(state, event_shape)
        if keeps:
            event = state
        if latent_shape != event_shape:
            state, keeps = latent_shape, False
    return (state, event) if flows else (None, None)


def shapes_agree(a: Any, b: Any) -> bool:
    """Whether two shapes can be the same, where None stands for any size."""
    return len(a) == len(b) and all(None in (m, n) or m == n for m, n in zip(a, b))


def _join(a: Shape | None, b: Shape) -> Shape:
    """What is known of a shape by either."""
    return b if a is None else tuple(n if m is None else m for m, n in zip(a, b))


def _wrapped(flow: nn.Module) -> Any:
    """The module inside of a compiled one, which has its methods."""
    return getattr(flow, "_orig_mod", flow)
