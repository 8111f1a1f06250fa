"""The bins of a rational-quadratic spline that positions fall in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._dependencies import constant_in_graphs

if TYPE_CHECKING:
    from .rational_quadratic import RationalQuadratic

__all__ = ["Bin", "Choice", "locate", "max_log_slope", "min_share"]


# Functions, since a compiler takes a number that it finds in a module for an input of the
# graph, of which an autograd function may have none when it is used a second time.
@constant_in_graphs
def min_share() -> float:
    """Share of the interval that every bin has at least, in width and in height."""
    return 1e-3


@constant_in_graphs
def max_log_slope() -> float:
    """Bound of the log-slopes at the knots, either way."""
    return math.log(1e3)


class Choice(NamedTuple):
    """The numbers of the bins that a batch falls in, and the shares that lead to them."""

    chosen: Tensor
    shares: list[Tensor]  # of widths and heights: softmax over all bins, (num_bins, ...)
    share: list[Tensor]  # those of the bin
    before: list[Tensor]  # the sums of those before it


class Bin(NamedTuple):
    """The bins of a batch, on the unit square."""

    x: Tensor  # lower left corner
    y: Tensor
    w: Tensor
    h: Tensor
    s: Tensor  # slope of the chord
    a0: Tensor  # parameters of the slopes at both ends
    a1: Tensor
    d0: Tensor  # slopes at both ends
    d1: Tensor
    t: Tensor  # position in the bin, from 0 to 1


def locate(
    u: Tensor, params: Tensor, spline: RationalQuadratic, inverse: bool
) -> tuple[Choice, Bin]:
    """The bins, and the positions in them of `u`: of results of the spline if `inverse`."""
    k = spline.num_bins
    # Parameters first: all operations run along the memory of many splines, not of one.
    logits = params.movedim(-1, 0)
    shares = [logits[:k].softmax(0), logits[k : 2 * k].softmax(0)]
    search = _pass_knots if torch.compiler.is_compiling() or u.numel() > 4096 else _count_knots
    index, share, before = search(u, shares, inverse)
    w, h = (min_share() + (1 - k * min_share()) * t for t in share)
    x, y = (_knot(index, t, k) for t in before)
    index = index.long()
    slopes = logits[2 * k :]
    end = slopes[:1] if spline.circular else torch.zeros_like(slopes[:1])
    slopes = torch.cat((slopes, end) if spline.circular else (end, slopes, end))
    a0, a1 = _pick(slopes, index), _pick(slopes, index + 1)
    d0, d1 = ((a / (1 + a.abs() / max_log_slope())).exp() for a in (a0, a1))
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
    return Choice(index, shares, share, before), Bin(x, y, w, h, s, a0, a1, d0, d1, t)


def _knot(index: Tensor | int, sums: Tensor, num_bins: int) -> Tensor:
    """Knots from their numbers and the sums of shares before them."""
    return (min_share() * index - 0.5) + (1 - num_bins * min_share()) * sums


def _pass_knots(
    u: Tensor, shares: list[Tensor], axis: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The bins of `u`, their shares and the sums of those before, going from knot to knot.

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
    """The results of `_pass_knots` from all knots at once, in the fewest operations."""
    k = len(shares[0])
    sums = [torch.cat((torch.zeros_like(t[:1]), t[:-1].cumsum(0))) for t in shares]
    numbers = torch.arange(1, k, device=u.device, dtype=u.dtype).view(-1, *[1] * u.dim())
    index = (u >= _knot(numbers, sums[axis][1:], k)).sum(0)
    share, before = ([_pick(table, index) for table in tables] for tables in (shares, sums))
    return index.to(u.dtype), share, before


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """The entries `index`, of shape (...), of tables (entries, ...) that broadcast."""
    if torch.compiler.is_compiling():
        # Selecting entry by entry fuses with what comes before and after, a gather does not.
        picked = table[0]
        for j in range(1, len(table)):
            picked = torch.where(index >= j, table[j], picked)
        return picked
    return table.expand(-1, *index.shape).gather(0, index.unsqueeze(0)).squeeze(0)
