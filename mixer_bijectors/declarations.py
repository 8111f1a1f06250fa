"""Shapes of events, context and options that any flow declares, also one of normflows."""

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import normflows as nf
from normflows.flows import Flow
from torch import nn

from ._checks import imported_class
from ._dependencies import constant_in_graphs, flows_of_composite, uncompiled
from ._repr import format_event
from .bijection import Bijection, Shape

__all__ = [
    "chain_context",
    "chain_shapes",
    "check_flow",
    "check_takes_context",
    "context_features",
    "event_shapes",
    "reads_context",
    "sampling_options",
    "shapes_agree",
]

# Arguments of models and of `apply_flow`: an option of sampling with such a name would go to
# them and never reach the layer.
_TAKEN = frozenset(
    ("context", "generator", "inverse", "labels", "num_samples", "temperature", "trace")
)
# Paths of the attributes in which flows of normflows keep the number of their features.
_SPLINE_NET = "mprqat.autoregressive_net.initial_layer.in_features"
_VECTOR_FLOWS = {
    nf.flows.MaskedAffineAutoregressive: "features",
    nf.flows.AutoregressiveRationalQuadraticSpline: _SPLINE_NET,
    nf.flows.CircularAutoregressiveRationalQuadraticSpline: _SPLINE_NET,
    nf.flows.CoupledRationalQuadraticSpline: "prqct.features",
    nf.flows.CircularCoupledRationalQuadraticSpline: "prqct.features",
    nf.flows.LULinearPermute: "linear.features",
}


def _method(flow: nn.Module, name: str) -> Any:
    # A method that a tool for profiling or offloading has set on the instance comes first.
    method = flow.__dict__.get(name) or getattr(type(flow), name)
    return getattr(method, "__func__", method)


def _takes_context(flow: nn.Module, method: str) -> bool:
    return _signature_takes_context(_method(flow, method))


@constant_in_graphs
@functools.cache
def _signature_takes_context(function: Callable[..., object]) -> bool:
    parameters = inspect.signature(function).parameters
    return "context" in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )


def context_features(flow: nn.Module) -> int | None:
    """Size of the context that a flow reads, 0 if it reads none; None where it is not known.

    A `Bijection`, or any flow with an attribute `context_features`, declares it. For the layers
    of normflows it is read off their nets. Another flow whose signature takes a context gets
    one, but does not count as conditional until it declares `context_features`, since it may
    ignore the context.
    """
    flow = uncompiled(flow)
    if isinstance(flow, Bijection) or hasattr(flow, "context_features"):
        declared: Any = flow.context_features
        return declared
    if not isinstance(flow, Flow) or not _takes_context(flow, "inverse"):
        return 0
    if not _is_of_normflows(flow):
        return None
    for module in flow.modules():
        layer = getattr(module, "context_layer", None)
        size = getattr(layer, "in_features", None) or getattr(module, "context_features", None)
        if size:
            return int(size)
    return 0


def _is_of_normflows(flow: nn.Module) -> bool:
    module = getattr(_method(flow, "inverse"), "__module__", "")
    return bool(module.split(".")[0] == "normflows")


def reads_context(flow: nn.Module, method: str) -> bool:
    """Whether to hand a context to a method of a flow."""
    if not _takes_context(flow, method):
        return False
    # Nets of normflows that were built without a context fail when they get one.
    return not _is_of_normflows(flow) or context_features(flow) != 0


def event_shapes(flow: nn.Module) -> tuple[Shape | None, Shape | None]:
    """Shapes of the latents and of the data of a flow; None where it does not declare them."""
    declared: Any = uncompiled(flow)
    if hasattr(declared, "event_shape"):
        return declared.latent_shape, declared.event_shape
    if type(declared) is nf.flows.Reverse:
        return event_shapes(declared.flow)[::-1]
    if type(declared) is nf.flows.Composite:
        return chain_shapes("Composite", flows_of_composite(declared))
    with contextlib.suppress(AttributeError):  # a net of the user's may lack the attribute
        if type(declared) in _VECTOR_FLOWS:
            size = operator.attrgetter(_VECTOR_FLOWS[type(declared)])(declared)
            return (size,), (size,)
    return None, None


def sampling_options(flows: Iterable[nn.Module]) -> tuple[str, ...]:
    """Names of the options of sampling that any of the flows declares."""
    options = (getattr(uncompiled(flow), "sampling_options", ()) for flow in flows)
    return tuple(dict.fromkeys(name for names in options for name in names))


def check_flow(name: str, flow: object) -> None:
    """Raise a TypeError for anything but a flow, such as a transform of nflows or a model."""
    flow = uncompiled(flow)
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
    check_takes_context(name, flow)
    check_hands_on_context(name, flow)
    check_sampling_options(name, flow)


def check_sampling_options(name: str, flow: nn.Module) -> None:
    """Refuse `sampling_options` that are one string, or named like arguments of models."""
    options = getattr(flow, "sampling_options", ())
    wrong = options if isinstance(options, str) else ", ".join(_TAKEN.intersection(options))
    if wrong:
        raise TypeError(
            f"{name}: {type(flow).__name__} declares sampling_options={options!r}; it must be "
            f"a tuple of names, other than {', '.join(sorted(_TAKEN))}"
        )


def check_takes_context(name: str, flow: nn.Module) -> None:
    """Refuse a flow that declares a context, but has a method without that argument."""
    flow = uncompiled(flow)
    if not context_features(flow):
        return
    for method in ("forward", "inverse"):
        if not _takes_context(flow, method):
            raise TypeError(
                f"{name}: {type(flow).__name__} declares context_features="
                f"{flow.context_features}, but its {method} has no argument context, so that "
                "it would never get one"
            )


def check_hands_on_context(name: str, flow: nn.Module) -> None:
    """Refuse a flow of normflows that holds one that reads a context, and hands none on.

    `Reverse` and `Composite` are such, and nets of normflows run without their context.
    """
    if not isinstance(flow, Flow) or not _is_of_normflows(flow):
        return
    if _takes_context(flow, "inverse"):
        return
    for inner in list(flow.modules())[1:]:
        if isinstance(inner, Flow) and (features := context_features(inner)):
            raise TypeError(
                f"{name}: {type(flow).__name__} of normflows hands on no context, and the "
                f"{type(inner).__name__} inside reads one of {features} features; compose "
                "flows with mb.Chain, or write a flow whose methods hand the context on"
            )


def chain_context(name: str, flows: Sequence[Flow]) -> int | None:
    """Size of the context that the flows read; None if one of them does not declare it."""
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
    # True while all flows seen so far have equal shapes of latents and data; then the data of
    # the chain have the shape of the state.
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
    """Whether two shapes can be equal, where None matches any size."""
    return len(a) == len(b) and all(None in (m, n) or m == n for m, n in zip(a, b))


def _join(a: Shape | None, b: Shape) -> Shape:
    """A shape with the sizes that either of two shapes knows."""
    return b if a is None else tuple(n if m is None else m for m, n in zip(a, b))
