"""Monotone rational-quadratic splines."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from .._graphs import constant_in_graphs
from .base import Univariate, check_bound, check_count

__all__ = ["RationalQuadratic"]


# Functions, since a compiler takes a number that it finds in a module for an input of the
# graph, of which an autograd function may have none when it is used a second time.
@constant_in_graphs
def _min_share() -> float:
    """Share of the interval that every bin has at least, in width and in height."""
    return 1e-3


@constant_in_graphs
def _max_log_slope() -> float:
    """Bound of the log-slopes at the knots, either way."""
    return math.log(1e3)


@dataclass(frozen=True)
class RationalQuadratic(Univariate):
    r"""Monotone rational-quadratic spline with linear tails, closed form in both directions.

    On [-b, b] the spline passes through `num_bins + 1` knots with slopes :math:`\delta_k`;
    between two knots, with :math:`s` the slope of their chord and :math:`t` in [0, 1] the
    position,

    .. math:: y = y_k + h \, \frac{t \, (s t + \delta_k (1 - t))}
        {s \, (t^2 + (1 - t)^2) + (\delta_k + \delta_{k + 1}) \, t (1 - t)}

    and it is the identity outside. The parameters of one bijection are logits of the widths and
    of the heights of the bins, which softmax turns into shares of the interval of at least
    1e-3, and log-slopes at the inner knots, softly bounded to 1e-3 to 1e3.

    The discriminant that inverts the spline is a sum of squares, and denominators stay above
    half the slope of the chord, so nothing here breaks, for whatever parameters. Gradients are
    in closed form, in reverse and in forward mode, and can be differentiated again.

    Args:
        num_bins: number of bins K; there are 3 K - 1 parameters, 3 K when circular.
        bound: the interval is [-bound, bound].
        circular: for angles of period 2 * bound. The slope at both ends is the same and free,
            and the bijection goes on periodically, f(x + 2 b) = f(x) + 2 b.

    Shapes: x (...), params (..., num_params), y and log|dy/dx| (...).

    Raises:
        TypeError: a bound or `circular` for each feature instead of one for all.
        ValueError: fewer than 2 bins or more than 500; a bound that is not positive and finite.

    References:
        Durkan et al., Neural spline flows, 2019 (https://arxiv.org/abs/1906.04032)

        Rezende et al., Normalizing flows on tori and spheres, 2020
        (https://arxiv.org/abs/2002.02428)

    Example:
        >>> spline = RationalQuadratic(num_bins=4)
        >>> x, params = torch.randn(5, dtype=torch.float64), torch.randn(5, 11).double()
        >>> y, log_derivative = spline(x, params)
        >>> bool((spline(y, params, inverse=True)[0] - x).abs().max() < 1e-12)
        True
    """

    num_bins: int = 8
    bound: float = 3.0
    circular: bool = False

    def __post_init__(self) -> None:
        check_count("RationalQuadratic", "num_bins", self.num_bins, least=2)
        check_bound("RationalQuadratic", self.bound)
        if not isinstance(self.circular, bool | np.bool_):
            raise TypeError(
                "RationalQuadratic: circular must be True or False for all features, got a "
                f"{type(self.circular).__name__}; give angles and other features a layer each"
            )

    @property
    def num_params(self) -> int:
        """Number of parameters of one bijection."""
        return 3 * self.num_bins - (not self.circular)

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        params = params[(None,) * (x.dim() + 1 - params.dim())]
        unit_spline = _UnitSpline if torch.compiler.is_compiling() else _ForwardModeUnitSpline
        u = x / (2 * self.bound)
        if self.circular:
            turns = (u.detach() + 0.5).floor()
            v, log_slope = unit_spline.apply(u - turns, params, self, inverse)
            return (v + turns) * (2 * self.bound), log_slope
        inside = x.abs() < self.bound
        # What is outside goes through the middle, with finite gradients that are discarded.
        v, log_slope = unit_spline.apply(torch.where(inside, u, 0.0), params, self, inverse)
        y = v * (2 * self.bound)
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


class _UnitSpline(torch.autograd.Function):
    """The spline on the unit square around 0 or its inverse, and the log-slope of that.

    Keeps its inputs alone for the backward pass, which finds the bins anew: less work than
    writing and reading what differentiating step by step would keep.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        u: Tensor, params: Tensor, spline: RationalQuadratic, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        _, b = _locate(u, params, spline, inverse)
        t, r = b.t, 1 - b.t
        tr, chords = t * r, 2 * b.s
        denominator = b.s + (b.d0 + b.d1 - chords) * tr
        numerator = b.d1 * (t * t) + chords * tr + b.d0 * (r * r)
        log_slope = ((b.s / denominator).square() * numerator).log()
        if inverse:
            return b.x + b.w * t, -log_slope
        return b.y + b.h * (t * (b.s * t + b.d0 * r) / denominator), log_slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        u, params, ctx.spline, ctx.inverse = inputs
        ctx.save_for_backward(u, params)
        ctx.save_for_forward(u, params)

    @staticmethod
    def backward(ctx: Any, grad_v: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:
        u, params = ctx.saved_tensors
        if torch.compiler.is_compiling():
            # Otherwise the compiler notices that the forward pass has found these bins, and
            # saves them.
            u, params = u.clone(), params.clone()
        return *_gradients(u, params, ctx.spline, ctx.inverse, grad_v, grad_log), None, None


class _ForwardModeUnitSpline(_UnitSpline):
    """The same with a derivative in forward mode, which keeps the compiler away."""

    @staticmethod
    def jvp(
        ctx: Any, tangent_u: Tensor, tangent_params: Tensor, *_: None
    ) -> tuple[Tensor, ...]:
        # Torch turns forward mode off in here, for derivatives of any order; what it has to
        # hide are only the tangents of this one.
        with fwAD._set_fwd_grad_enabled(True):
            u, params = (fwAD.unpack_dual(t).primal for t in ctx.saved_tensors)
            # The transpose of the backward pass, which is linear in what it gets.
            zeros = torch.zeros_like(u)
            transpose = torch.func.vjp(
                lambda *g: _gradients(u, params, ctx.spline, ctx.inverse, *g), zeros, zeros
            )[1]
            return transpose((tangent_u, tangent_params))


def _gradients(
    u: Tensor,
    params: Tensor,
    spline: RationalQuadratic,
    inverse: bool,
    grad_v: Tensor,
    grad_log: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of u and of the parameters from those of the value and of the log-slope."""
    choice, b = _locate(u, params, spline, inverse)
    grad_u, *grads = _gradient_in_bin(b, inverse, grad_v, grad_log)
    del b  # much of the memory that is in use here
    return grad_u, _gradient_of_choice(choice, spline, *grads).sum_to_size(params.shape)


class _Choice(NamedTuple):
    """Which bins a batch falls in."""

    chosen: Tensor
    shares: list[Tensor]  # of widths and heights: softmax over all bins, (num_bins, ...)
    share: list[Tensor]  # those of the bin
    before: list[Tensor]  # the sums of those before it


class _Bin(NamedTuple):
    """The bins themselves, on the unit square."""

    x: Tensor  # lower left corner
    y: Tensor
    w: Tensor
    h: Tensor
    s: Tensor  # slope of the chord
    a0: Tensor  # parameters of the slopes at both ends
    a1: Tensor
    d0: Tensor  # those slopes
    d1: Tensor
    t: Tensor  # position in the bin, from 0 to 1


def _locate(
    u: Tensor, params: Tensor, spline: RationalQuadratic, inverse: bool
) -> tuple[_Choice, _Bin]:
    k = spline.num_bins
    # Parameters first: all operations run along the memory of many splines, not of one.
    logits = params.movedim(-1, 0)
    shares = [logits[:k].softmax(0), logits[k : 2 * k].softmax(0)]
    search = _pass_knots if torch.compiler.is_compiling() or u.numel() > 4096 else _count_knots
    index, share, before = search(u, shares, inverse)
    w, h = (_min_share() + (1 - k * _min_share()) * t for t in share)
    x, y = (_knot(index, t, k) for t in before)
    index = index.long()
    slopes = logits[2 * k :]
    end = slopes[:1] if spline.circular else torch.zeros_like(slopes[:1])
    slopes = torch.cat((slopes, end) if spline.circular else (end, slopes, end))
    a0, a1 = _pick(slopes, index), _pick(slopes, index + 1)
    d0, d1 = ((a / (1 + a.abs() / _max_log_slope())).exp() for a in (a0, a1))
    s = h / w
    if inverse:
        eta = ((u - y) / h).clamp(0, 1)
        rest = 1 - eta
        # The root of the quadratic equation with its discriminant as a sum of squares, and in
        # that of its two forms which adds numbers of the same sign.
        skew = d0 * rest - d1 * eta
        left, right = 2 * s * eta, 2 * s * rest
        root = skew.abs() + (skew * skew + left * right).sqrt()
        rising = skew >= 0
        t = torch.where(rising, left, root) / (torch.where(rising, left, right) + root)
    else:
        t = ((u - x) / w).clamp(0, 1)
    return _Choice(index, shares, share, before), _Bin(x, y, w, h, s, a0, a1, d0, d1, t)


def _knot(index: Tensor | int, sums: Tensor, num_bins: int) -> Tensor:
    """Knots from their numbers and the sums of shares before them."""
    return (_min_share() * index - 0.5) + (1 - num_bins * _min_share()) * sums


def _pass_knots(
    u: Tensor, shares: list[Tensor], axis: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """From bin to bin, as far as the knots that u has passed reach.

    Selecting by arithmetic on zeros and ones is faster than searching and indexing where
    tensors are large, and compiles to one loop over memory.
    """
    k = len(shares[0])
    index, before = torch.zeros_like(u), [torch.zeros_like(u)] * 2
    share = [t[0] for t in shares]
    total = share[axis]
    for j in range(1, k):
        passed = (u >= _knot(j, total, k)).to(u.dtype)
        index = index + passed
        before = [torch.addcmul(one, passed, t[j - 1]) for one, t in zip(before, shares)]
        share = [torch.lerp(one, t[j], passed) for one, t in zip(share, shares)]
        total = total + shares[axis][j]
    return index, share, before


def _count_knots(
    u: Tensor, shares: list[Tensor], axis: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """All knots at once, the same in the fewest operations."""
    k = len(shares[0])
    sums = [torch.cat((torch.zeros_like(t[:1]), t[:-1].cumsum(0))) for t in shares]
    numbers = torch.arange(1, k, device=u.device, dtype=u.dtype).view(-1, *[1] * u.dim())
    index = (u >= _knot(numbers, sums[axis][1:], k)).sum(0)
    share, before = ([_pick(table, index) for table in tables] for tables in (shares, sums))
    return index.to(u.dtype), share, before


def _gradient_in_bin(
    b: _Bin, inverse: bool, grad_v: Tensor, grad_log: Tensor
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
        grad_d0 / (1 + b.a0.abs() / _max_log_slope()).square(),
        grad_d1 / (1 + b.a1.abs() / _max_log_slope()).square(),
    )


def _gradient_of_choice(
    choice: _Choice,
    spline: RationalQuadratic,
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
        _gradient_of_shares(index, shares.pop(0), share.pop(0), before.pop(0), corner, size)
        for corner, size in ((x, w), (y, h))
    )
    slopes = a0.new_zeros(spline.num_bins + 1, *a0.shape)
    slopes = _add_at(_add_at(slopes, index, a0), index + 1, a1)
    inner = slopes[1:-1]
    ends = [slopes[:1] + slopes[-1:]] if spline.circular else []
    return torch.cat((widths, heights, *ends, inner)).movedim(0, -1)


def _gradient_of_shares(
    index: Tensor, shares: Tensor, share: Tensor, before: Tensor, corner: Tensor, size: Tensor
) -> Tensor:
    """Gradient of the logits of all bins on one axis from those of a corner and of a size."""
    k = len(shares)
    corner, size = ((1 - k * _min_share()) * t for t in (corner, size))
    earlier = torch.arange(k, device=index.device).view(-1, *[1] * corner.dim()) < index
    # Through softmax: of each bin's gradient the mean over the shares is subtracted.
    mean = corner * before + size * share
    grad = torch.addcmul(-mean, earlier.to(mean.dtype), corner).mul_(shares)
    return _add_at(grad, index, share * size)


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """The entries `index`, of shape (...), of tables (entries, ...) that broadcast."""
    if torch.compiler.is_compiling():
        # Selecting entry by entry fuses with what comes before and after, a gather does not.
        picked = table[0]
        for j in range(1, len(table)):
            picked = torch.where(index >= j, table[j], picked)
        return picked
    return table.expand(-1, *index.shape).gather(0, index.unsqueeze(0)).squeeze(0)


def _add_at(table: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Add values, of shape (...), to the entries `index`, of shape (1, ...), of a new table."""
    if torch.compiler.is_compiling():
        entries = torch.arange(len(table), device=index.device)
        chosen = entries.view(-1, *[1] * values.dim()) == index
        return torch.where(chosen, table + values, table)
    return table.scatter_add_(0, index, values.unsqueeze(0))
