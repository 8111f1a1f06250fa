"""The triangular equations behind autoregressive layers, of this library and of others."""

import copy
from functools import partial
from typing import Any

import torch
from nflows.transforms import made as nflows_made
from nflows.transforms.autoregressive import AutoregressiveTransform
from normflows import flows as normflows_flows
from normflows.flows.affine import autoregressive as normflows_autoregressive
from normflows.nets import made as normflows_made
from torch import Tensor, nn
from torch.nn import functional as F

from ..bridges.nflows import _TransformAsFlow
from ..layers.autoregressive import Autoregressive

__all__ = [
    "check_passes_agree",
    "find_sequential",
    "has_hooks",
    "is_as_defined",
    "next_values",
    "order_of",
    "with_masked_weights",
]

# What is solved here is what these functions loop over, and no more: a method that a subclass
# or a user puts in their place may do anything. They are compared as they were defined.
_LOOPS = (normflows_autoregressive.Autoregressive.inverse, AutoregressiveTransform.inverse)
_OWN = {name: getattr(Autoregressive, name) for name in ("forward", "transform", "jacobi_step")}
# These call such a loop of the layer that they hold under this name.
_TURNED = (
    (normflows_flows.AutoregressiveRationalQuadraticSpline.forward, "mprqat"),
    (normflows_flows.CircularAutoregressiveRationalQuadraticSpline.forward, "mprqat"),
    (_TransformAsFlow.forward, "transform"),
)
_NETS = (normflows_made.MADE, nflows_made.MADE)


def find_sequential(module: nn.Module) -> tuple[str, Any] | None:
    """The sequential direction of a layer, and the layer that its equation comes from.

    None where that direction is not one of the known loops, or hooks belong to it, which run
    when a module is called.
    """
    if any(_method(module, "inverse") is loop for loop in _LOOPS):
        return "inverse", module
    if has_hooks(module):
        return None
    if all(_method(module, name) is method for name, method in _OWN.items()):
        return "forward", module
    forward = _method(module, "forward")
    for turned, name in _TURNED:
        if forward is turned:
            inner: Any = getattr(module, name)
            if any(_method(inner, "inverse") is loop for loop in _LOOPS):
                return "forward", inner
    return None


def next_values(
    layer: Any, y: Tensor, x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All features at once from the current ones, and the log_det that goes with them."""
    if isinstance(layer, Autoregressive):
        return layer.jacobi_step(y, x, context)
    x, log_det = layer._elementwise_inverse(y, layer.autoregressive_net(x, context))
    return x, log_det


def order_of(layer: Any, features: int, device: torch.device) -> Tensor | None:
    """The features in the order in which the layer reads them, if it says."""
    if isinstance(layer, Autoregressive):
        if _method(layer, "_order") is not Autoregressive._order:
            return None
        order = torch.arange(features, device=device)
        return order.flip(0) if layer.reverse else order
    net = layer.autoregressive_net
    if type(net) not in _NETS or type(net.final_layer) not in _MASKED:
        return None
    # As many outputs of the same degree for each feature in turn. Stable, since an average of
    # models has truncated degrees, which leaves ties in their order.
    return net.final_layer.degrees.view(features, -1)[:, 0].argsort(stable=True)


def check_passes_agree(layer: nn.Module) -> None:
    """Refuse what makes each pass another function of its input."""
    for module in layer.modules():
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
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
    """A copy whose masked linear layers have multiplied their weights by their masks.

    They do so in every pass otherwise, which takes as long as the matrix product of a small
    batch. All else is shared with the original, which stays as it is.
    """
    # Others than these compute their weights when they are called.
    masked = is_as_defined(module, _MASKED.get(type(module)))
    if masked and not module._forward_pre_hooks:
        copied = copy.copy(module)
        copied.forward = partial(F.linear, weight=module.weight * module.mask, bias=module.bias)
        return copied
    children = {
        name: None if child is None else with_masked_weights(child)
        for name, child in module._modules.items()
    }
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    copied = copy.copy(module)
    copied._modules = children
    return copied


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before or after a module when it is called."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


def is_as_defined(module: nn.Module, forward: object) -> bool:
    """Whether a module runs this `forward`, and no method is replaced on the instance."""
    hidden = (getattr(type(module), name, None) for name in module.__dict__)
    return type(module).forward is forward and not any(map(callable, hidden))


def _method(module: nn.Module, name: str) -> Any:
    # Without vars(), which torch.compile did not know before version 2.6.
    return module.__dict__.get(name, getattr(type(module), name, None))


# Masked layers, and their `forward` as it was defined.
_MASKED = {
    layer: layer.forward for layer in (normflows_made.MaskedLinear, nflows_made.MaskedLinear)
}
