"""Comparison of autograd with finite differences, for one direction of a flow."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .flow import apply_flow

__all__ = [
    "Run",
    "check_close",
    "check_derivatives",
    "check_gradients",
    "derivatives",
    "position",
]

_STEP = 1e-6  # of finite differences, whose error in float64 is about 1e-10


class Run:
    """One direction of a flow, which gets copies of inputs and returns copies of results."""

    def __init__(self, flow: nn.Module, context: Tensor | None, method: str) -> None:
        self.flow = flow
        self.context = context
        self.inverse = method == "inverse"
        self.where = f"{type(flow).__name__}.{method}"

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Copies of the result and of log_det for some of the samples."""
        y, log_det = self.bare(x.clone(), rows)
        return y.clone(), log_det.clone()

    def bare(self, x: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        if self.context is None:
            return apply_flow(self.flow, x[rows], inverse=self.inverse)
        context = self.context[rows].clone()
        results = apply_flow(self.flow, x[rows], context, inverse=self.inverse)
        if not torch.equal(context, self.context[rows]):
            raise AssertionError(f"{self.where}: changes its context in place")
        return results


def check_close(what: str, got: Tensor, want: Tensor, atol: float, rtol: float) -> None:
    error = (got - want).abs()
    excess = error - (atol + rtol * want.abs())
    if not bool((excess <= 0).all()):
        worst = int(excess.nan_to_num(torch.inf).argmax())
        raise AssertionError(
            f"{what} by up to {error.flatten()[worst].item():.3g}, at index "
            f"{position(worst, error)}: {got.flatten()[worst].item():.6g} against "
            f"{want.flatten()[worst].item():.6g}"
        )


def position(flat: int, tensor: Tensor) -> tuple[int, ...]:
    index = torch.unravel_index(torch.tensor(flat, device="cpu"), tensor.shape)
    return tuple(int(i) for i in index)


def derivatives(run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
    """The Jacobian (batch, dims, dims) and the gradient of log_det (batch, dims), by autograd.

    One backward pass for each output serves all samples, which do not depend on each other.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y, log_det = run(x)
        if not y.requires_grad:
            raise AssertionError(
                f"{run.where}: autograd does not see through it, so that its log_det cannot be "
                "compared with the Jacobian's"
            )
        outputs = [*y.flatten(1).sum(0), log_det.sum()]
        rows = [
            torch.autograd.grad(output, x, retain_graph=True, materialize_grads=True)[0]
            if output.requires_grad
            else torch.zeros_like(x)
            for output in outputs
        ]
    *jacobian, slope = (row.flatten(1) for row in rows)
    return torch.stack(jacobian, dim=1), slope


def check_derivatives(run: Run, x: Tensor, jacobian: Tensor, slope: Tensor) -> None:
    """Compare derivatives of autograd with finite differences in a random direction."""
    (ahead,) = _directions([x])
    with torch.no_grad():
        after, before = run(x + _STEP * ahead), run(x - _STEP * ahead)
    direction = ahead.flatten(1)
    for what, got, (high, low) in (
        (
            "its autograd Jacobian",
            (jacobian @ direction[..., None])[..., 0],
            (after[0], before[0]),
        ),
        ("the gradient of log_det", (slope * direction).sum(1), (after[1], before[1])),
    ):
        want = (high - low).reshape(got.shape) / (2 * _STEP)
        _check_slopes(f"{run.where}: {what}", got, want)


def check_gradients(run: Run, x: Tensor) -> None:
    """Compare the gradients of parameters with finite differences in a random direction."""
    parameters = [p for p in run.flow.parameters() if p.requires_grad]
    if not parameters:
        return
    directions = _directions(parameters)
    with torch.enable_grad():
        outputs = run(x)
    slopes = []
    for output in outputs:
        slope = x.new_zeros(())
        if output.requires_grad:
            grads = torch.autograd.grad(
                output.sum(), parameters, retain_graph=True, materialize_grads=True
            )
            slope = sum(((g * d).sum() for g, d in zip(grads, directions)), slope)
        slopes.append(slope)
    sides = []
    with torch.no_grad():
        for step in (_STEP, -2 * _STEP):
            for parameter, direction in zip(parameters, directions):
                parameter.add_(direction, alpha=step)
            sides.append(run(x))
    for what, got, high, low in zip(("result", "log_det"), slopes, *sides):
        want = (high - low).sum() / (2 * _STEP)
        _check_slopes(f"{run.where}: the gradient of its parameters by {what}", got, want)


def _directions(tensors: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(1)
    return [
        torch.randn(t.shape, dtype=t.dtype, generator=generator, device="cpu").to(t.device)
        for t in tensors
    ]


def _check_slopes(what: str, got: Tensor, want: Tensor) -> None:
    atol = 1e-4 * (1 + want.abs().max().item())
    check_close(f"{what} differs from finite differences", got, want, atol, 0.0)
