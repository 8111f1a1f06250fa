"""The sequential direction of a layer with a MADE, in a single pass of the net."""

import copy
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import replaces_methods
from .._dependencies import elementwise_inverse, has_hooks, is_empty
from ..layers.autoregressive import Autoregressive
from .known_layers import (
    MADES,
    NET_PARTS,
    STEPPED_LAYERS,
    full_name,
    is_unchanged,
)

__all__ = ["is_faster", "solve_incrementally", "supports"]

# Degrees for which one product of matrices collects what they read of all those before, as
# that is faster than a product for each of them.
_BLOCK = 16

# Multiplications for each feature from which on this is faster than iteration, on one core:
# in the dozen passes or more that trained layers need, they take as long as the calls of one.
_MIN_PRODUCTS = 1 << 17

# A layer that is called once for each degree, with the units of that degree alone.
_DegreeLayer = Callable[[Tensor], Tensor]
_DegreeSteps = Generator[Tensor, Tensor, None]

# The scales of affine layers. Each map is x = (y - shift) / scale, and to compute x alone takes
# a third of the calls of the layer's own method, which also returns the log-determinant.
_SCALES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "normflows.flows.affine.autoregressive.MaskedAffineAutoregressive": lambda layer, a: (
        torch.sigmoid(a + 2.0) + 1e-3
    ),
    "nflows.transforms.autoregressive.MaskedAffineAutoregressiveTransform": lambda layer, a: (
        F.softplus(a) + layer._epsilon
    ),
}


def supports(layer: Any, features: int) -> bool:
    """Whether a layer of so many features can be solved by `solve_incrementally`.

    It can if its map and all parts of its net are known to work on some of the units alone.
    """
    step = STEPPED_LAYERS.get(full_name(type(layer)))
    if step is None or not is_unchanged(type(layer), step) or replaces_methods(layer):
        return False
    # Circular splines have tails of their own for each feature.
    tails, bound = getattr(layer, "tails", None), getattr(layer, "tail_bound", None)
    if isinstance(tails, list | tuple) or isinstance(bound, Tensor):
        return False
    net = _net(layer)
    if full_name(type(net)) not in MADES or net.initial_layer.in_features != features:
        return False
    degrees = net.final_layer.degrees
    if degrees.device.type == "cpu" and len(degrees.unique()) != features:
        return False  # an average of models has truncated these whole numbers
    preprocessing = getattr(net, "preprocessing", None)
    return isinstance(preprocessing, nn.Identity | None) and all(map(_is_known, net.modules()))


def _is_known(module: nn.Module) -> bool:
    if has_hooks(module):
        return False
    if isinstance(module, nn.BatchNorm1d) and module.training:
        return False
    if type(module) is nn.ModuleList:
        return True
    if full_name(type(module)) in NET_PARTS:
        return is_unchanged(type(module), "forward") and not replaces_methods(module)
    return is_empty(module)  # an activation, or dropout


def solve_incrementally(
    layer: Any, y: Tensor, context: Tensor | None, order: Tensor
) -> tuple[Tensor, Tensor]:
    """The values that a layer maps to `y`, one feature after the other, and log_det.

    A hidden unit of degree i reads only the first i features in `order`, and the next feature
    only units up to that degree. So each feature that becomes known settles the units of its
    degree, once and for all: together they cost one pass of the net.
    """
    if isinstance(layer, Autoregressive):
        context = layer.check(y, context, inverse=False)
    # Calls take less time in inference mode. What it returns is no part of any graph, so that
    # copies are made outside of it.
    with torch.inference_mode(), torch.autocast(y.device.type, enabled=False):
        x, log_det = _solve_in_order(layer, y, context, order)
    return x.clone(memory_format=torch.contiguous_format), log_det.clone()


def _solve_in_order(
    layer: Any, y: Tensor, context: Tensor | None, order: Tensor
) -> tuple[Tensor, Tensor]:
    net = _split_by_degree(_net(layer), y.shape[0], context)
    step = _feature_map(layer)
    # Features and units are rows, whose samples lie next to each other in memory.
    rows = y.t().index_select(0, order)
    x = rows[:0]
    all_params: list[Tensor] = []
    for row in rows.split(1):
        params = net(x, context)
        if not all_params and isinstance(layer, Autoregressive) and layer.first is not None:
            params = params + layer.first(context).t()
        all_params.append(params)
        x = step(row, params)
    # The parameters are known now, so that all features are mapped in one call of the layer.
    x, log_det = _map(layer, rows.t(), torch.stack(all_params).movedim(-1, 0))
    x = x.index_select(1, order.argsort())
    return x.to(y.dtype), log_det.to(y.dtype)


def _net(layer: Any) -> Any:
    return layer.net if isinstance(layer, Autoregressive) else layer.autoregressive_net


def _map(layer: Any, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Features (batch, features), given their parameters (batch, features, num_params)."""
    if isinstance(layer, Autoregressive):
        x, log_derivative = layer.univariate(y, params)
        return x, log_derivative.sum(1)
    return elementwise_inverse(layer, y, params.flatten(1))


def _feature_map(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The map of one feature (1, batch), given its parameters (num_params, batch)."""
    scale = _SCALES.get(full_name(type(layer)))
    if scale is not None and is_unchanged(type(layer), "_unconstrained_scale_and_shift"):
        return lambda y, params: (y - params[1:]) / scale(layer, params[:1])
    if not isinstance(layer, Autoregressive):
        layer = copy.copy(layer)
        layer.features = 1
    return lambda y, params: _map(layer, y.t(), params.t().unsqueeze(1))[0].t()


class _Degrees:
    """The units of a layer sorted by degree, from 0 to one below the number of features."""

    def __init__(self, degrees: Tensor, features: int) -> None:
        self.order = degrees.argsort(stable=True)
        self.counts: list[int] = (
            degrees.round().long().bincount(minlength=features)[:features].tolist()
        )


def _split_by_degree(net: Any, batch: int, context: Tensor | None) -> Callable[..., Tensor]:
    """The net as a function to call once for each degree, with the feature solved last.

    The first call, with no feature at all, returns the parameters of the first feature; the
    second, with the first feature, those of the second; and so on. It runs the code of the
    net on layers that each keep their earlier inputs. Features, units and parameters are rows:
    (1, batch) goes in, and (num_params, batch) comes out.
    """
    features = net.initial_layer.in_features

    def units(layer: Any) -> _Degrees:
        return _Degrees(layer.degrees, features)

    def masked(layer: Any, inputs: _Degrees, outputs: _Degrees) -> _DegreeLayer:
        return _started(_masked_linear(layer, inputs, outputs, batch))

    def copied(module: Any, outputs: _Degrees, **parts: Any) -> Callable[..., Tensor]:
        """The code of a module with other parts, which `__dict__` puts before children."""
        if context is not None and hasattr(module, "context_layer"):
            parts["context_layer"] = _started(_linear(module.context_layer, outputs, context))
        module = copy.copy(module)
        module.__dict__ |= parts
        return module.forward

    degrees = net.final_layer.degrees
    inputs = _Degrees(degrees.view(features, -1)[:, 0], features)
    hidden = first = units(net.initial_layer)
    initial_layer = masked(net.initial_layer, inputs, first)
    blocks = []
    for block in net.blocks:
        parts: dict[str, Any] = {"dropout": _unchanged}
        if hasattr(block, "linear_layers"):
            # A residual goes from degree to same degree.
            linears, norms = block.linear_layers, getattr(block, "batch_norm_layers", ())
            parts["linear_layers"] = [masked(linear, first, first) for linear in linears]
            parts["batch_norm_layers"] = [_started(_batch_norm(norm, first)) for norm in norms]
        else:
            # The block's own degrees are no buffer, and stay where it was built.
            outputs = units(block.linear)
            parts["linear"] = masked(block.linear, hidden, outputs)
            if block.batch_norm is not None:
                parts["batch_norm"] = _started(_batch_norm(block.batch_norm, hidden))
            hidden = outputs
        blocks.append(copied(block, hidden, **parts))
    return copied(
        net,
        first,
        preprocessing=_unchanged,
        initial_layer=initial_layer,
        blocks=blocks,
        # Parameters of a feature read units of lower degree than its own.
        final_layer=masked(net.final_layer, hidden, _Degrees(degrees - 1, features)),
    )


def _started(steps: _DegreeSteps) -> _DegreeLayer:
    next(steps)
    return steps.send


def _unchanged(x: Tensor) -> Tensor:
    return x


def _masked_linear(layer: Any, inputs: _Degrees, outputs: _Degrees, batch: int) -> _DegreeSteps:
    """Outputs of each degree in turn, from the inputs of that degree."""
    weight = layer.weight * layer.mask
    # Several times as fast as indexing.
    weight = weight.index_select(0, outputs.order).index_select(1, inputs.order)
    bias = layer.bias[outputs.order].unsqueeze(1)
    # Units as rows, which keeps those of a degree together in memory. Those not yet seen are
    # zeros, where weights are zeros too.
    seen = weight.new_zeros(weight.shape[1], batch)
    piece = weight
    row = column = 0
    for start in range(0, len(inputs.counts), _BLOCK):
        widths = inputs.counts[start : start + _BLOCK]
        heights = outputs.counts[start : start + _BLOCK]
        rows, columns = slice(row, row + sum(heights)), slice(column, column + sum(widths))
        base = torch.addmm(bias[rows], weight[rows, :column], seen[:column])
        recent = seen[columns]
        for place, offset, factor in zip(
            recent.split(widths),
            base.split(heights),
            weight[rows, columns].split(heights),
        ):
            place.copy_((yield piece))
            piece = torch.addmm(offset, factor, recent)
        row, column = rows.stop, columns.stop
    yield piece


def _linear(layer: nn.Linear, outputs: _Degrees, x: Tensor) -> _DegreeSteps:
    """Outputs of each degree in turn, all of the same input."""
    piece = F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias).t()[outputs.order]
    for following in piece.split(outputs.counts):
        yield piece
        piece = following
    yield piece


def _batch_norm(layer: nn.BatchNorm1d, units: _Degrees) -> _DegreeSteps:
    """Units of each degree in turn, normalised."""
    mean: Any = layer.running_mean
    var: Any = layer.running_var
    scale = layer.weight / (var + layer.eps).sqrt()
    piece: Tensor = layer.weight
    # F.batch_norm refuses degrees without units.
    parts = (p[units.order].unsqueeze(1).split(units.counts) for p in (mean, scale, layer.bias))
    for center, factor, offset in zip(*parts):
        piece = torch.addcmul(offset, (yield piece) - center, factor)
    yield piece


def is_faster(layer: nn.Module, y: Tensor) -> bool:
    """Whether `solve_incrementally` is faster than iteration for this batch.

    It saves the arithmetic of all passes but one, and calls as many operations for each feature
    as a pass calls in all. On a GPU the calls take longer than the arithmetic.
    """
    products = y.shape[0] * sum(p.numel() for p in layer.parameters()) / y.shape[1]
    return y.device.type == "cpu" and products >= _MIN_PRODUCTS
