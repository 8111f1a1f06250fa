"""The triangular equations of autoregressive layers, here, in normflows and in nflows."""

import copy
from functools import partial
from typing import Any

import torch
from normflows.flows import (
    AutoregressiveRationalQuadraticSpline,
    CircularAutoregressiveRationalQuadraticSpline,
)
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import replaces_methods
from .._dependencies import child_modules, elementwise_inverse, has_hooks, with_children
from ..bridges.nflows import TransformAsFlow
from ..layers.autoregressive import Autoregressive
from .known_layers import (
    MADES,
    MASKED_LINEARS,
    full_name,
    is_unchanged,
    loops_over_features,
)

__all__ = [
    "check_passes_agree",
    "find_sequential",
    "jacobi_step",
    "order_of",
    "with_masked_weights",
]

# The methods of `Autoregressive` that define its equation; a subclass that overrides one of
# them solves another equation.
_METHODS = {
    name: getattr(Autoregressive, name) for name in ("forward", "transform", "jacobi_step")
}
# Methods that run the sequential loop of an inner layer, and the attribute that holds it.
_REVERSED = (
    (AutoregressiveRationalQuadraticSpline.forward, "mprqat"),
    (CircularAutoregressiveRationalQuadraticSpline.forward, "mprqat"),
    (TransformAsFlow.forward, "transform"),
)
_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def find_sequential(module: nn.Module) -> tuple[str, Any] | None:
    """The name of the sequential direction of a layer, and the layer whose equation it solves.

    None if the direction is not one of the known loops. Also None if the module has hooks:
    they run with `forward`, and a solver would leave them out.
    """
    if loops_over_features(module):
        return "inverse", module
    if has_hooks(module):
        return None
    if all(method_of(module, name) is method for name, method in _METHODS.items()):
        return "forward", module
    forward = method_of(module, "forward")
    for reversed_loop, name in _REVERSED:
        if forward is reversed_loop:
            inner: Any = getattr(module, name)
            if loops_over_features(inner):
                return "forward", inner
    return None


def jacobi_step(
    layer: Any, y: Tensor, x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """New values of all features from the current ones, and the log_det of that map."""
    if isinstance(layer, Autoregressive):
        return layer.jacobi_step(y, x, context)
    return elementwise_inverse(layer, y, layer.autoregressive_net(x, context))


def order_of(layer: Any, features: int, device: torch.device) -> Tensor | None:
    """The features in the order in which the layer reads them; None where it is not known."""
    if isinstance(layer, Autoregressive):
        if method_of(layer, "_order") is not Autoregressive._order:
            return None
        order = torch.arange(features, device=device)
        return order.flip(0) if layer.reverse else order
    net = layer.autoregressive_net
    known = full_name(type(net)) in MADES and full_name(type(net.final_layer)) in MASKED_LINEARS
    if not known:
        return None
    # All features have the same number of outputs, next to each other and of equal degree, so
    # the first of each is enough. The sort is stable: in an average of models the degrees were
    # rounded down, and features whose degrees became equal must stay in their order.
    return net.final_layer.degrees.view(features, -1)[:, 0].argsort(stable=True)


def check_passes_agree(layer: nn.Module) -> None:
    """Raise if a layer does not compute the same function in every pass, as with dropout."""
    for module in layer.modules():
        dropout = isinstance(module, _DROPOUT) and module.p > 0
        batch_norm = isinstance(module, _BATCH_NORM)
        if module.training and (dropout or batch_norm):
            raise ValueError(
                f"ParallelInverse: {type(module).__name__} in training mode makes each pass "
                "differ; call eval() for the sequential direction"
            )
        if batch_norm and module.running_mean is None:
            raise ValueError(
                f"ParallelInverse: {type(module).__name__} without running statistics makes "
                "samples depend on each other; build it with track_running_stats=True"
            )


def with_masked_weights(module: Any) -> Any:
    """A copy of a net in which the weights of masked linear layers are multiplied by the masks.

    Without this, the layers multiply again in every pass, which takes as long as the matrix
    product of a small batch. The copy shares all else with the original, which is not changed.
    """
    if _multiplies_by_mask(module):
        copied = copy.copy(module)
        copied.forward = partial(F.linear, weight=module.weight * module.mask, bias=module.bias)
        return copied
    children = child_modules(module)
    copies = {
        name: None if child is None else with_masked_weights(child)
        for name, child in children.items()
    }
    if all(copies[name] is child for name, child in children.items()):
        return module
    return with_children(module, copies)


def _multiplies_by_mask(module: nn.Module) -> bool:
    """Whether a layer is a known masked linear layer, without hooks or replaced methods."""
    return (
        full_name(type(module)) in MASKED_LINEARS
        and is_unchanged(type(module), "forward")
        and not replaces_methods(module)
        and not has_hooks(module)
    )


def method_of(module: nn.Module, name: str) -> Any:
    # Not by vars(), which torch.compile supports only from version 2.6.
    return module.__dict__.get(name, getattr(type(module), name, None))
