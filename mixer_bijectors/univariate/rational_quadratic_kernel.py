"""Rational-quadratic splines on the unit square, with derivatives in closed form."""

from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from .._dependencies import with_forward_mode
from .rational_quadratic_bins import Bin, Choice, locate
from .rational_quadratic_form import Form

__all__ = ["pull_back_unit_spline", "unit_spline"]


def unit_spline(u: Tensor, params: Tensor, form: Form, inverse: bool) -> tuple[Tensor, Tensor]:
    """The spline on the unit square around 0 or its inverse at `u`, and the log-slope of that.

    Args:
        u: positions from -1/2 to 1/2, of shape (...).
        params: parameters of as many axes and one more, (..., num_params); they broadcast.
        form: what the parameters stand for.
        inverse: the direction.
    """
    # To record a function takes longer than to compute a small one. A trace is recorded twice,
    # once without gradients, and both must agree.
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not (torch.is_grad_enabled() or is_traced):
        return _UnitSpline.forward(u, params, form, inverse)
    function = _UnitSpline if torch.compiler.is_compiling() else _ForwardModeUnitSpline
    return function.apply(u, params, form, inverse)


def pull_back_unit_spline(
    v: Tensor, params: Tensor, form: Form, inverse: bool, grad_v: Tensor, grad_log: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The position `u` of which `unit_spline` makes `v`, and the gradients by `u` and `params`.

    The bins are found once, by `v`.
    """
    choice, b = locate(v, params, form, not inverse)
    u = _value(b, not inverse)[0]
    grad_u, *grads = _gradient_in_bin(b, form, inverse, grad_v, grad_log)
    del b  # much of the memory that is in use here
    return u, grad_u, _gradient_of_choice(choice, form, *grads).sum_to_size(params.shape)


class _UnitSpline(torch.autograd.Function):
    """Keeps its inputs alone for the backward pass, which finds the bins anew.

    That is less work than to write and read what differentiating step by step would keep.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, params: Tensor, form: Form, inverse: bool) -> tuple[Tensor, Tensor]:
        return _value(locate(u, params, form, inverse)[1], inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        u, params, ctx.form, ctx.inverse = inputs
        ctx.save_for_backward(u, params)
        ctx.save_for_forward(u, params)

    @staticmethod
    def backward(ctx: Any, grad_v: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:
        u, params = ctx.saved_tensors
        if torch.compiler.is_compiling():
            # Otherwise the compiler notices that the forward pass has found these bins, and
            # saves them.
            u, params = u.clone(), params.clone()
        return *_gradients(u, params, ctx.form, ctx.inverse, grad_v, grad_log), None, None


class _ForwardModeUnitSpline(_UnitSpline):
    """Adds the derivative in forward mode, which the compiler cannot take."""

    @staticmethod
    def jvp(
        ctx: Any, tangent_u: Tensor, tangent_params: Tensor, *_: None
    ) -> tuple[Tensor, ...]:
        # Torch turns forward mode off in here for derivatives of all orders, but only the
        # tangents of this order must be hidden.
        with with_forward_mode():
            u, params = (fwAD.unpack_dual(t).primal for t in ctx.saved_tensors)
            # The transpose of the backward pass, which is linear in what it gets.
            zeros = torch.zeros_like(u)
            transpose = torch.func.vjp(
                lambda *g: _gradients(u, params, ctx.form, ctx.inverse, *g), zeros, zeros
            )[1]
            return transpose((tangent_u, tangent_params))


def _value(b: Bin, inverse: bool) -> tuple[Tensor, Tensor]:
    """The value and the log-slope at a position in a bin, of either direction."""
    t, r = b.t, 1 - b.t
    tr, chords = t * r, 2 * b.s
    denominator = b.s + (b.d0 + b.d1 - chords) * tr
    numerator = b.d1 * (t * t) + chords * tr + b.d0 * (r * r)
    log_slope = ((b.s / denominator).square() * numerator).log()
    if inverse:
        return b.x + b.w * t, -log_slope
    return b.y + b.h * (t * (b.s * t + b.d0 * r) / denominator), log_slope


def _gradients(
    u: Tensor,
    params: Tensor,
    form: Form,
    inverse: bool,
    grad_v: Tensor,
    grad_log: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of u and of the parameters from those of the value and of the log-slope."""
    choice, b = locate(u, params, form, inverse)
    grad_u, *grads = _gradient_in_bin(b, form, inverse, grad_v, grad_log)
    del b  # much of the memory that is in use here
    return grad_u, _gradient_of_choice(choice, form, *grads).sum_to_size(params.shape)


def _gradient_in_bin(
    b: Bin, form: Form, inverse: bool, grad_v: Tensor, grad_log: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of u, x, y, w, h, a0 and a1 from those of the value and of the log-slope."""
    t, r, s, w, d0, d1 = b.t, 1 - b.t, b.s, b.w, b.d0, b.d1
    tr, turn, chords, slopes = t * r, r - t, 2 * s, d0 + d1
    d0r, d1t = d0 * r, d1 * t
    d0rr, d1tt = d0r * r, d1t * t
    excess = slopes - chords
    # Reciprocals of the denominator and of the numerator of the slope.
    p, q = 1 / (s + excess * tr), 1 / (d1tt + chords * tr + d0rr)
    top = s * t + d0r
    slope = (s * p).square() / q
    # The derivative of the log-slope by t.
    bend = 2 * ((d1t - d0r + s * turn) * q - turn * excess * p)
    if inverse:
        # The implicit function: x moves against what the parameters do to y, over the slope.
        grad_log = -grad_log
        grad_u = (grad_v + grad_log * bend / w) / slope
        grad_y, grad_t = -grad_u, -grad_v * w
    else:
        grad_y, grad_t = grad_v, grad_v * slope * w + grad_log * bend
        grad_u = grad_t / w
    # Of the logarithms of s, d0 and d1.
    of_value = grad_y * b.h * p * p * tr
    of_log, of_tr = grad_log * q, 2 * grad_log * tr * p
    grad_s = of_value * s * (d1tt - d0rr) + of_tr * slopes + of_log * chords * tr
    grad_d0 = of_value * d0r * (s * r + d1t) + of_log * d0rr - of_tr * d0
    grad_d1 = of_log * d1tt - of_tr * d1 - of_value * d1t * top
    return (
        grad_u,
        -grad_t / w,
        grad_y,
        -(grad_s + grad_t * t) / w,
        grad_y * (t * top * p) + grad_s / b.h,
        grad_d0 * form.log_slope_rate(b.a0, d0),
        grad_d1 * form.log_slope_rate(b.a1, d1),
    )


def _gradient_of_choice(
    choice: Choice,
    form: Form,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    h: Tensor,
    a0: Tensor,
    a1: Tensor,
) -> Tensor:
    """Gradient of all parameters from those of the bin that was chosen."""
    chosen, shares, share, before = choice
    index = chosen.unsqueeze(0)
    # Popped, so that the memory of one axis is free when the other's turn comes.
    widths, heights = (
        _gradient_of_shares(
            index, shares.pop(0), share.pop(0), before.pop(0), factor * corner, factor * size
        )
        for corner, size, factor in zip((x, y), (w, h), form.factors)
    )
    slopes = a0.new_zeros(form.num_bins + 1, *a0.shape)
    slopes = _add_at(_add_at(slopes, index, a0), index + 1, a1)
    return torch.cat((widths, heights, form.free_slopes(slopes))).movedim(0, -1)


def _gradient_of_shares(
    index: Tensor, shares: Tensor, share: Tensor, before: Tensor, corner: Tensor, size: Tensor
) -> Tensor:
    """Gradient of the logits of all bins on one axis from those of its shares.

    These are given as the gradient of each share before the bin, and that of the share of it.
    """
    earlier = (
        torch.arange(len(shares), device=index.device).view(-1, *[1] * corner.dim()) < index
    )
    # Through softmax: of each bin's gradient the mean over the shares is subtracted.
    mean = corner * before + size * share
    grad = torch.addcmul(-mean, earlier.to(mean.dtype), corner).mul_(shares)
    return _add_at(grad, index, share * size)


def _add_at(table: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Add values, of shape (...), to the entries `index`, of shape (1, ...), of a new table."""
    if torch.compiler.is_compiling():
        entries = torch.arange(len(table), device=index.device)
        chosen = entries.view(-1, *[1] * values.dim()) == index
        return torch.where(chosen, table + values, table)
    return table.scatter_add_(0, index, values.unsqueeze(0))
