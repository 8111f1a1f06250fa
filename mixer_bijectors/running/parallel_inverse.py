"""The sequential direction of an autoregressive layer, solved in a few passes of its net."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import (
    check_input,
    check_number,
    check_size,
    imported_class,
    is_concrete,
    is_traced,
)
from ..declarations import context_features
from ..flow import Flow, call_flow
from ..solvers.fixed_point import solve, solve_in_fixed_passes, with_implicit_gradients
from .equations import (
    check_passes_agree,
    find_sequential,
    jacobi_step,
    order_of,
    with_masked_weights,
)
from .incremental_made import is_faster, solve_incrementally, supports
from .wrapper import LayerWrapper

__all__ = ["ParallelInverse", "ParallelLayer"]


class ParallelLayer(LayerWrapper):
    """Solves the sequential direction of a layer, for `ParallelInverse` and for nflows."""

    # Declared on the class, so that they are never taken from the layer instead.
    tol: float = 1e-6
    max_iter: int | None = None
    last_iterations: int | None = None
    # None, since the solver replaces the methods that the options of the layer choose from.
    sampling_options: tuple[str, ...] = ()

    def __init__(self, flow: nn.Module, *, tol: float = 1e-6, max_iter: int | None = None):
        if find_sequential(flow) is None:
            raise TypeError(
                f"ParallelInverse: {type(flow).__name__} has no sequential direction that is "
                "known, or has hooks; accelerate_sampling(model) finds the layers of a model "
                "that can be wrapped"
            )
        check_number("ParallelInverse", "tol", tol)
        if not tol > 0:
            raise ValueError(f"ParallelInverse: tol must be positive, got {tol}")
        if max_iter is not None:
            check_size("ParallelInverse", "max_iter", max_iter, least=1)
        super().__init__(flow)
        self.tol = tol
        self.max_iter = max_iter

    def __copy__(self) -> "ParallelLayer":
        # Built anew, since copied hooks refer to the original, and fail when it is freed.
        return type(self)(self.flow, tol=self.tol, max_iter=self.max_iter)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self._run("forward", z, context)
        return x.contiguous(), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self._run("inverse", x, context)
        return z.contiguous(), log_det

    def _run(self, direction: str, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.flow, Flow) and context_features(self.flow) == 0:
            context = None  # which the net of the layer would not take
        by_layer = partial(call_flow, self.flow, inverse=direction == "inverse")
        if isinstance(y, Tensor) and y.dim() > 2:  # loops of nflows run over all dimensions
            return by_layer(y, context)
        check_input("ParallelInverse", y, "features")
        if y.shape[0] == 0:  # which layers of normflows and nflows cannot reshape
            if is_traced():
                raise ValueError(
                    "ParallelInverse: a graph of an empty batch would hold no layer; trace or "
                    "export it with a batch of samples"
                )
            return y, y.new_zeros(0)
        sequential, layer = find_sequential(self.flow) or ("", self.flow)
        if direction != sequential:
            return by_layer(y, context)
        check_passes_agree(layer)
        inputs = [t for t in (y, context, *self.parameters()) if t is not None]
        if all(map(is_concrete, inputs)):
            return self._solve(layer, y, context)
        x, log_det = solve_in_fixed_passes(
            partial(_step, layer, y, context), torch.zeros_like(y)
        )
        return x, log_det

    def _solve(self, layer: Any, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The values that the layer maps to `y`, and log_det, in as few passes as they need."""
        # Rounding in float64 is that much smaller than in float32, for which `tol` is given.
        tol = self.tol * min(1.0, torch.finfo(y.dtype).eps / torch.finfo(torch.float32).eps)
        order = order_of(layer, y.shape[1], y.device)
        solve_rows = None
        if order is not None and supports(layer, y.shape[1]):
            solve_rows = partial(_solve_rows, layer, y, context, order)
        if solve_rows and self.max_iter is None and is_faster(layer, y):
            x, log_det = solve_rows(torch.arange(y.shape[0], device=y.device))
            self.last_iterations = 1
        else:
            with torch.no_grad():
                (x, log_det), self.last_iterations = solve(
                    partial(_step, with_masked_weights(layer), y, context),
                    torch.zeros_like(y),
                    order,
                    tol,
                    self.max_iter,
                    solve_rows,
                )
        if torch.is_grad_enabled():
            step = partial(_step, layer, y, context)
            return with_implicit_gradients(step, x, log_det, order, tol)
        return x, log_det


class ParallelInverse(ParallelLayer, Flow):
    r"""Runs the sequential direction of an autoregressive layer in one pass or a few.

    That direction solves :math:`x_i = f(y_i; \mathrm{net}_i(x_1, \ldots, x_{i - 1}))`, one
    feature after the other, with a pass of the net for each. Here it is done in one of two
    ways:

    - Incrementally, on a CPU in batches large enough that arithmetic takes longer than calls
      do, for nets that are a MADE: each feature, once known, settles some hidden units for
      good, and all of them together cost one pass. That is exact, and takes the same time for
      all weights.
    - By iteration everywhere else, or if `max_iter` is given: all features are updated at once,
      :math:`x \leftarrow f(y; \mathrm{net}(x))`, until they no longer change. That is exact
      after as many passes as there are features, since the first i are after i passes, and in
      practice after ten, or some dozens where the map is steep. Each pass ends with one look at
      the values on the host. Samples that have converged are left out of the passes that
      follow, once an eighth of them have; those whose values overflow on the way, or do not
      converge within `max_iter`, are solved feature by feature, incrementally where the net is
      a MADE.

    The other direction is that of the layer. So are both where its loop is not the one that is
    solved here, because a method was replaced on the instance, or a hook was put on a layer
    that is sequential when it is called. Where values cannot be looked at (on the meta device,
    under torch.compile, torch.func and tracing), as many passes run as there are features,
    which is exact for all values.

    Gradients are those of the implicit function: memory does not grow with the number of
    passes. Second derivatives are not available.

    The layer is its child `flow`; its net and sizes are found on the wrapper too. Keys of the
    state_dict are those of the layer; names of parameters start with `flow.`, and
    `load_state_dict` takes either. Passes must agree, so that a net in training mode may hold
    neither dropout nor batch normalisation.

    Args:
        flow: `Autoregressive`; of normflows `MaskedAffineAutoregressive`,
            `AutoregressiveRationalQuadraticSpline` and its circular kin; or `from_nflows` of
            an `AutoregressiveTransform` of nflows. Of subclasses, those that leave the loop
            over features as it is.
        tol: the change, relative to values above 1, at which a sample has converged in the
            iteration, and in that for gradients; that is in float32 and below, and as much
            smaller in float64 as that is more exact.
        max_iter: number of passes before samples that have not converged are solved feature by
            feature; by default the number of features. A number asks for the iteration.

    Attributes:
        last_iterations: passes that the last call in the sequential direction took, without
            samples that were left over and solved feature by feature; 1 if all of them were
            solved incrementally.

    Shapes: those of the layer.

    Raises:
        TypeError: a layer that is not autoregressive, or has a loop of its own; an input that
            is not floating point.
        ValueError: a tolerance that is not positive, a `max_iter` below 1; an input that is not
            of shape (batch, features); dropout or batch normalisation in training mode, or
            batch normalisation without running statistics.
        NotImplementedError: second derivatives.

    References:
        Song et al., Accelerating feedforward computation via parallel nonlinear equation
        solving, 2020 (https://arxiv.org/abs/2002.03629)

        Bai et al., Deep equilibrium models, 2019 (https://arxiv.org/abs/1909.01377)

    Example:
        >>> maf = nf.flows.MaskedAffineAutoregressive(64, 128)
        >>> fast = ParallelInverse(maf)
        >>> x = torch.randn(10, 64)
        >>> torch.allclose(fast.inverse(x)[0], maf.inverse(x)[0], atol=1e-5)
        True
        >>> fast.last_iterations < 64
        True
    """

    def __init__(self, flow: nn.Module, *, tol: float = 1e-6, max_iter: int | None = None):
        if isinstance(flow, imported_class("nflows.transforms.base", "Transform")):
            raise TypeError(
                f"ParallelInverse: {type(flow).__name__} of nflows runs the other way; wrap "
                "from_nflows(layer), or call accelerate_sampling(layer)"
            )
        super().__init__(flow, tol=tol, max_iter=max_iter)

    @property
    def context_features(self) -> int | None:
        """Size of the context that the layer reads."""
        return context_features(self.flow)


def _step(
    layer: Any, y: Tensor, context: Tensor | None, x: Tensor, rows: Tensor
) -> tuple[Tensor, ...]:
    """A pass over some rows of the batch, from their current values."""
    y, context = _select_rows(y, context, rows)
    x, log_det = jacobi_step(layer, y, x, context)
    return x.to(y.dtype), log_det.to(y.dtype)


def _solve_rows(
    layer: Any, y: Tensor, context: Tensor | None, order: Tensor, rows: Tensor
) -> tuple[Tensor, ...]:
    return solve_incrementally(layer, *_select_rows(y, context, rows), order)


def _select_rows(
    y: Tensor, context: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor | None]:
    if rows.shape[0] == y.shape[0]:
        return y, context
    if context is None or context.shape[0] == 1:
        return y[rows], context
    return y[rows], context[rows]
