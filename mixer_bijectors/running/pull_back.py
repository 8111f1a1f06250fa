"""The input of a layer and the gradients of a loss there, from the output of the layer."""

from collections.abc import Callable, Sequence
from typing import Any

import normflows as nf
import torch
from torch import Tensor, nn

from .._checks import imported_class
from .._dependencies import all_parameters, has_hooks, is_compiled, without_tensor_hooks
from ..chain import Chain
from ..flow import apply_flow, no_autocast
from ..layers.actnorm import ActNorm
from ..layers.coupling import Coupling, HalvesCoupling
from ..layers.lu_linear import LULinear
from ..layers.matrix_coupling import MatrixCoupling
from ..layers.mixing import ChannelMixing, Lift, PatchMixing, PixelMixing, WindowMixing
from ..layers.mixing_layer import MixingLayer, MixingStep, NamedChain, NeighbourhoodStep
from ..layers.patch_grid import Patchify
from ..layers.shift import CyclicShift, Shift
from ..univariate import Univariate
from . import glow_gradients
from .conditioners import Conditioners
from .known_layers import runs_methods_of

__all__ = ["PullBack"]


class PullBack:
    """Runs layers backwards: reconstructs their inputs, and collects gradients on the way.

    Called with a layer, its output, its context and the gradients of a loss by its output and
    by its log_det, it returns the input and the gradient by it. Compositions and lifts hand
    this on to the layers in them, so that the activations of one of these are there at a time.
    A coupling runs its net once, since both directions call it with the same half, and linear
    layers have their gradients in closed form. Any other layer is undone by its other
    direction, and runs once more for autograd.

    Args:
        inverse: the direction that led to the output.

    Attributes:
        grads: gradients of parameters and contexts.

    References:
        Gomez et al., The reversible residual network, 2017, algorithm 1
        (https://arxiv.org/abs/1707.04585)
    """

    def __init__(self, *, inverse: bool) -> None:
        self.inverse = inverse
        self.grads: dict[Tensor, Tensor] = {}

    def __call__(
        self,
        layer: nn.Module,
        y: Tensor,
        context: Tensor | None,
        grad_y: Tensor,
        grad_log_det: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The input of a layer, and the gradient of the loss by it."""
        rule = _rule(layer, y, context)
        if rule is not None:
            return rule(self, layer, y, context, grad_y, grad_log_det)
        return self.by_autograd(layer, y, context, grad_y, grad_log_det)

    def turned(self) -> "PullBack":
        """This for layers that are run in the other direction; gradients are added up here."""
        other = PullBack(inverse=not self.inverse)
        other.grads = self.grads
        return other

    def by_autograd(
        self,
        layer: nn.Module,
        y: Tensor,
        context: Tensor | None,
        grad_y: Tensor,
        grad_log_det: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What a call of it does, for any layer."""
        conditioners = Conditioners((layer,))
        with torch.no_grad(), conditioners.recorded():
            x, _ = apply_flow(layer, y, context, inverse=not self.inverse)
        x = x.detach().requires_grad_()
        with torch.enable_grad(), conditioners.replayed():
            results = apply_flow(layer, x, context, inverse=self.inverse)
        (grad_x,) = self.collect(layer, results, (grad_y, grad_log_det), [x], context)
        return x.detach(), torch.zeros_like(x) if grad_x is None else grad_x

    def collect(
        self,
        layer: nn.Module,
        results: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        context: Tensor | None = None,
    ) -> list[Tensor | None]:
        """Add to the gradients of a layer's parameters; return those of inputs.

        Args:
            layer: whose parameters they are.
            results: what was computed with a graph.
            grads: the gradient by each of the results; None for none.
            inputs: tensors of which the gradients are returned, None where nothing depends.
            context: a tensor that may need a gradient, too.
        """
        pairs = [(r, g) for r, g in zip(results, grads) if g is not None and r.requires_grad]
        others: list[Tensor] = [p for p in all_parameters(layer) if p.requires_grad]
        if context is not None and context.requires_grad:
            others.append(context)
        wanted = [*inputs, *others]
        if not (pairs and wanted):
            return [None] * len(inputs)
        outputs, given = zip(*pairs)
        with no_autocast(outputs[0]), without_tensor_hooks(others):
            found = torch.autograd.grad(outputs, wanted, given, allow_unused=True)
        for tensor, grad in zip(others, found[len(inputs) :]):
            if grad is not None:
                self.add(tensor, grad)
        return [*found[: len(inputs)]]

    def add(self, tensor: Tensor, grad: Tensor) -> None:
        """Add to the gradient of a parameter or a context."""
        known = self.grads.get(tensor)
        self.grads[tensor] = grad if known is None else known + grad


_Rule = Callable[[PullBack, Any, Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]


def _rule(layer: nn.Module, y: Tensor, context: Tensor | None) -> _Rule | None:
    """The rule of a layer that runs the methods of a class which has one."""
    if has_hooks(layer) or is_compiled(layer):
        return None
    splines = tuple(imported_class(*name) for name in _SPLINES)
    if isinstance(layer, splines):
        from . import spline_gradients  # imports nflows

        return spline_gradients.rule(layer, y, context)
    kind = next((kind for kind in _RULES if isinstance(layer, kind)), None)
    if kind is None:
        return None
    if not runs_methods_of(layer, kind):
        return None
    if kind in _WITHOUT_PARTS:  # which convert what is of another precision
        given = (y, y if context is None else context)
        if any(p.dtype != t.dtype for p in all_parameters(layer)[:1] for t in given):
            return None
        if isinstance(layer, HalvesCoupling) and not isinstance(layer.univariate, Univariate):
            return None
    return _RULES[kind]


def _pull_back_chain(
    pull: PullBack,
    layer: Chain | NamedChain | nf.flows.GlowBlock,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    parts: list[Any] = layer.parts if isinstance(layer, NamedChain) else [*layer.flows]
    for part in parts if pull.inverse else reversed(parts):
        y, grad_y = pull(part, y, context, grad_y, grad_log_det)
    return y, grad_y


def _pull_back_turned(
    pull: PullBack,
    layer: nf.flows.Reverse | nf.flows.CoupledRationalQuadraticSpline,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    if isinstance(layer, nf.flows.Reverse):  # which hands on no context
        return pull.turned()(layer.flow, y, None, grad_y, grad_log_det)
    return pull.turned()(layer.prqct, y, context, grad_y, grad_log_det)


def _pull_back_lift(
    pull: PullBack,
    layer: Lift,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        spread = layer.context_of_vectors(y, context)
    own = None if spread is None else spread.detach().requires_grad_(spread.requires_grad)
    x, grad_x = pull(
        layer.flow,
        layer.vectors(y),
        own,
        layer.vectors(grad_y),
        grad_log_det.repeat_interleave(layer.copies(y)),
    )
    if spread is not None and own in pull.grads:
        pull.collect(nn.Module(), [spread], [pull.grads.pop(own)], [], context)
    return layer.whole(x, y).contiguous(), layer.whole(grad_x, y).contiguous()


def _pull_back_shift(
    pull: PullBack,
    layer: Shift,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    (window, frame), (grad_window, grad_frame) = map(layer.take_out, (y, grad_y))
    window, grad_window = pull(layer.flow, window, context, grad_window, grad_log_det)
    return layer.put_back(window, frame), layer.put_back(grad_window, grad_frame)


def _pull_back_permutation(
    pull: PullBack,
    layer: Patchify | CyclicShift,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    x, grad_x = (layer.transform(t, inverse=not pull.inverse)[0] for t in (y, grad_y))
    return x, grad_x


def _pull_back_coupling(
    pull: PullBack,
    layer: HalvesCoupling,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    context = context if layer.context_features else None
    (kept, transformed), (grad_kept, grad_transformed) = map(layer.split, (y, grad_y))
    kept = kept.detach().requires_grad_()
    with torch.enable_grad():
        params = layer.params(kept, transformed, context)
    grad_log = grad_log_det.view(-1, *[1] * (y.dim() - 1)).expand_as(transformed)
    with no_autocast(y):
        x, grad_x, grad_params = layer.univariate.pull_back(
            transformed, params.detach(), pull.inverse, grad_transformed, grad_log
        )
    (more,) = pull.collect(layer.net, [params], [grad_params], [kept], context)
    grad_kept = grad_kept if more is None else grad_kept + more
    return layer.join(kept.detach(), x), layer.join(grad_kept, grad_x)


def _pull_back_actnorm(
    pull: PullBack,
    layer: ActNorm,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    back, offset, _ = layer.affine(inverse=not pull.inverse)
    x = torch.addcmul(offset, y, back)
    with torch.enable_grad():
        results = layer.affine(inverse=pull.inverse)
    grads = ((grad_y * x).sum(0), grad_y.sum(0), grad_log_det.sum())
    pull.collect(layer, results, grads, [])
    return x, grad_y * results[0].detach()


def _pull_back_linear(
    pull: PullBack,
    layer: LULinear,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    if not pull.inverse:  # which solves with the factors of the matrix
        return pull.by_autograd(layer, y, context, grad_y, grad_log_det)
    with no_autocast(y):
        x, _ = layer.transform(y)
        with torch.enable_grad():
            weight, log_abs_det = layer.weight(), layer.factors.diagonal().sum()
        pull.collect(layer, (weight, log_abs_det), (grad_y.mT @ x, grad_log_det.sum()), [])
        return x, grad_y @ weight.detach()


_WITHOUT_PARTS: dict[type[nn.Module], _Rule] = {
    Coupling: _pull_back_coupling,
    MatrixCoupling: _pull_back_coupling,
    LULinear: _pull_back_linear,
    ActNorm: _pull_back_actnorm,
    **glow_gradients.RULES,
}
_RULES: dict[type[nn.Module], _Rule] = {
    **_WITHOUT_PARTS,
    **dict.fromkeys((ChannelMixing, PatchMixing, PixelMixing, WindowMixing), _pull_back_lift),
    **dict.fromkeys((Chain, MixingLayer, MixingStep, NeighbourhoodStep), _pull_back_chain),
    nf.flows.GlowBlock: _pull_back_chain,
    **dict.fromkeys(
        (nf.flows.Reverse, nf.flows.CoupledRationalQuadraticSpline), _pull_back_turned
    ),
    **dict.fromkeys((Patchify, CyclicShift), _pull_back_permutation),
    Shift: _pull_back_shift,
}
# Splines of normflows and nflows, as module and class.
_SPLINES = tuple(
    (module, f"PiecewiseRationalQuadratic{kind}")
    for module, kind in (
        ("nflows.transforms.coupling", "CouplingTransform"),
        ("nflows.transforms.nonlinearities", "CDF"),
        ("normflows.flows.neural_spline.coupling", "Coupling"),
        ("normflows.flows.neural_spline.coupling", "CDF"),
    )
)
