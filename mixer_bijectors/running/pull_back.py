"""The input of a layer and the gradients of a loss there, from the output of the layer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import imported_class
from .._dependencies import all_parameters, has_hooks, is_compiled, without_tensor_hooks
from ..flow import apply_flow, no_autocast
from ..layers.coupling import HalvesCoupling
from ..univariate import Univariate
from . import composite_gradients, glow_gradients, layer_gradients
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
        """Input of any layer and its gradient, by autograd, as a call of this class."""
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
    if kind in _COMPUTING:  # which convert what is of another precision
        given = (y, y if context is None else context)
        if any(p.dtype != t.dtype for p in all_parameters(layer)[:1] for t in given):
            return None
        if isinstance(layer, HalvesCoupling) and not isinstance(layer.univariate, Univariate):
            return None
    return _RULES[kind]


# The layers that compute in one precision, in place of handing on what they get.
_COMPUTING: dict[type[nn.Module], _Rule] = {**layer_gradients.RULES, **glow_gradients.RULES}
_RULES: dict[type[nn.Module], _Rule] = {**_COMPUTING, **composite_gradients.RULES}
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
