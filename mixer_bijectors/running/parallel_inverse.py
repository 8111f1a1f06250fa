"""The sequential direction of autoregressive layers: all features at once, or in one pass."""

import re
import warnings
from functools import partial
from typing import Any, TypeVar

import torch
from nflows.transforms import Transform as NflowsTransform
from torch import Tensor, nn

from .._checks import check_input, is_concrete
from ..flow import Flow, call_flow, context_features
from ..solvers.fixed_point import solve, solve_in_fixed_passes, with_implicit_gradients
from .equations import (
    check_passes_agree,
    find_sequential,
    next_values,
    order_of,
    with_masked_weights,
)
from .incremental_made import solve_incrementally, supports

__all__ = ["ParallelInverse", "accelerate_sampling"]


class _Parallel(nn.Module):
    """What `ParallelInverse` is, for layers of normflows and of nflows alike."""

    flow: Any
    # The solver takes the place of what the options of the layer are for.
    sampling_options: tuple[str, ...] = ()

    def __init__(self, flow: nn.Module, *, tol: float = 1e-6, max_iter: int | None = None):
        super().__init__()
        if find_sequential(flow) is None:
            raise TypeError(
                f"ParallelInverse: {type(flow).__name__} has no sequential direction that is "
                "known, or has hooks; accelerate_sampling(model) finds the layers of a model "
                "that can be wrapped"
            )
        if not tol > 0:
            raise ValueError(f"ParallelInverse: tol must be positive, got {tol}")
        if max_iter is not None and max_iter < 1:
            raise ValueError(f"ParallelInverse: max_iter must be at least 1, got {max_iter}")
        self.tol = tol
        self.max_iter = max_iter
        self.last_iterations: int | None = None
        self.training = flow.training
        self.flow = flow
        # Checkpoints are those of the layer, to go by before and after.
        self.register_state_dict_post_hook(_save_as_the_layer)
        self.register_load_state_dict_pre_hook(_load_as_the_layer)
        self.register_load_state_dict_post_hook(_report_as_the_layer)

    def __getattr__(self, name: str) -> Any:
        """What the layer has: its net, its sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "flow" or name.startswith("_"):
                raise
            return getattr(self.flow, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What the layer has and this does not is set there, where it counts."""
        layer = self.__dict__.get("_modules", {}).get("flow")
        own = name == "flow" or name in self.__dict__ or hasattr(type(self), name)
        if own or name.startswith("_") or not hasattr(layer, name):
            super().__setattr__(name, value)
        else:
            setattr(layer, name, value)

    def __copy__(self) -> "_Parallel":
        # The hooks of the original would live no longer than the original.
        return type(self)(self.flow, tol=self.tol, max_iter=self.max_iter)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self._run("forward", z, context)
        return x.contiguous(), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self._run("inverse", x, context)
        return z.contiguous(), log_det

    def _run(self, direction: str, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(y, Tensor) and y.dim() > 2:  # loops of nflows run over all dimensions
            return call_flow(self.flow, y, context, inverse=direction == "inverse")
        check_input("ParallelInverse", y, "features")
        if y.shape[0] == 0:  # which layers of normflows and nflows cannot reshape
            return y, y.new_zeros(0)
        sequential, layer = find_sequential(self.flow) or ("", self.flow)
        if direction != sequential:
            return call_flow(self.flow, y, context, inverse=direction == "inverse")
        check_passes_agree(layer)
        start = torch.zeros_like(y)
        inputs = [t for t in (y, context, *self.parameters()) if t is not None]
        if not all(map(is_concrete, inputs)):
            x, log_det = solve_in_fixed_passes(partial(_step, layer, y, context), start)
            return x, log_det
        # What float32 can tell apart, float64 can tell apart that much closer.
        finer = min(1.0, torch.finfo(y.dtype).eps / torch.finfo(torch.float32).eps)
        tol = self.tol * finer
        order = order_of(layer, y.shape[1], y.device)
        solve_rows = None
        if order is not None and supports(layer, y.shape[1]):
            solve_rows = partial(_solve_rows, layer, y, context, order)
        if solve_rows and self.max_iter is None and _is_faster_incrementally(layer, y):
            x, log_det = solve_rows(torch.arange(y.shape[0], device=y.device))
            self.last_iterations = 1
        else:
            with torch.no_grad():
                (x, log_det), self.last_iterations = solve(
                    partial(_step, with_masked_weights(layer), y, context),
                    start,
                    order,
                    tol,
                    self.max_iter,
                    solve_rows,
                )
        if torch.is_grad_enabled():
            step = partial(_step, layer, y, context)
            return with_implicit_gradients(step, x, log_det, order, tol)
        return x, log_det


class _ParallelTransform(_Parallel, NflowsTransform):
    """The same for a transform of nflows, which stays one."""


class ParallelInverse(_Parallel, Flow):
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
        if isinstance(flow, NflowsTransform):
            raise TypeError(
                f"ParallelInverse: {type(flow).__name__} of nflows runs the other way; wrap "
                "from_nflows(layer), or call accelerate_sampling(layer)"
            )
        super().__init__(flow, tol=tol, max_iter=max_iter)

    @property
    def context_features(self) -> int | None:
        """Size of the context that the layer reads."""
        return context_features(self.flow)


_Module = TypeVar("_Module", bound=nn.Module)


def accelerate_sampling(model: _Module, **options: Any) -> _Module:
    """Wrap each autoregressive layer in a model of normflows or nflows in `ParallelInverse`.

    In place; state_dicts from before and after load into either. Where the density direction
    is the sequential one, as in normflows' `MaskedAffineAutoregressive`, it is densities that
    become fast. A subclass with a loop over features of its own is left as it is. A second call
    replaces the options. Warns if there was nothing to wrap.

    Args:
        model: a model, a layer or any module that holds some.
        **options: those of `ParallelInverse`.

    Returns:
        The model; if it is itself an autoregressive layer, that layer wrapped.

    Raises:
        TypeError: what is not a module.

    Example:
        >>> base = nf.distributions.DiagGaussian(8)
        >>> flows = [nf.flows.MaskedAffineAutoregressive(8, 16) for _ in range(3)]
        >>> model = accelerate_sampling(nf.NormalizingFlow(base, flows))
        >>> type(model.flows[0]).__name__
        'ParallelInverse'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"accelerate_sampling: expected a module, got {type(model).__name__}; pass the "
            "model or layer that holds the parameters"
        )
    wrapped: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        layer = module.flow if isinstance(module, _Parallel) else module
        if layer in wrapped:
            return wrapped[layer]
        if find_sequential(layer) is not None:
            of_nflows = isinstance(layer, NflowsTransform)
            wrap = _ParallelTransform if of_nflows else ParallelInverse
            wrapped[layer] = wrap(layer, **options)
            return wrapped[layer]
        for name, child in module._modules.items():  # named_children names each but once
            if child is not None and (new := visit(child)) is not child:
                setattr(module, name, new)
        return module

    # A layer that is wrapped has the methods of its type.
    accelerated: Any = visit(model)
    if not wrapped:
        warnings.warn(
            f"accelerate_sampling: {type(model).__name__} holds no layer to wrap, which is one "
            "with a known loop over features (a subclass with a loop of its own is left as it "
            "is, and TransformerAutoregressive samples in parallel by itself)",
            stacklevel=2,
        )
    return accelerated


def _step(
    layer: Any, y: Tensor, context: Tensor | None, x: Tensor, rows: Tensor
) -> tuple[Tensor, ...]:
    """A pass over some rows of the batch, from their current values."""
    y, context = _given(y, context, rows)
    x, log_det = next_values(layer, y, x, context)
    return x.to(y.dtype), log_det.to(y.dtype)


def _solve_rows(
    layer: Any, y: Tensor, context: Tensor | None, order: Tensor, rows: Tensor
) -> tuple[Tensor, ...]:
    return solve_incrementally(layer, *_given(y, context, rows), order)


def _given(y: Tensor, context: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    if rows.shape[0] == y.shape[0]:
        return y, context
    if context is None or context.shape[0] == 1:
        return y[rows], context
    return y[rows], context[rows]


def _save_as_the_layer(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    inner = f"{prefix}flow."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)
    # Versions of modules, which each of the two models looks for under its own names.
    versions = getattr(state, "_metadata", {})
    for key in [key for key in versions if f"{key}.".startswith(inner)]:
        versions[f"{prefix}{f'{key}.'.removeprefix(inner)}"[:-1]] = versions[key]


def _load_as_the_layer(
    module: nn.Module, state: dict[str, Any], prefix: str, *arguments: Any
) -> None:
    # The hook that reports is not told the prefix, and gets no messages.
    module.__dict__["_loading"] = prefix, arguments[-1]
    # Names that named_parameters() gives are right already.
    inner = f"{prefix}flow."
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(inner)]:
        state[inner + key.removeprefix(prefix)] = state.pop(key)


def _report_as_the_layer(module: nn.Module, keys: Any) -> None:
    prefix, messages = module.__dict__.pop("_loading")
    inner = f"{prefix}flow."
    for names in (keys.missing_keys, keys.unexpected_keys):
        names[:] = [re.sub(f"^{re.escape(inner)}", prefix, name) for name in names]
    messages[:] = [re.sub(rf"\b{re.escape(inner)}", prefix, text) for text in messages]


def _is_faster_incrementally(layer: nn.Module, y: Tensor) -> bool:
    """Whether the arithmetic for a feature takes longer than the calls for a feature.

    Solving one feature after the other saves arithmetic, that of all passes but one, for as
    many calls for each feature as a pass makes in all. On a GPU those take longer.
    """
    products = y.shape[0] * sum(p.numel() for p in layer.parameters()) / y.shape[1]
    return y.device.type == "cpu" and products >= _WORTH_THE_CALLS


# Multiplications that take as long as the calls of a pass over the dozen passes or more that
# trained layers need, on one core.
_WORTH_THE_CALLS = 1 << 17
