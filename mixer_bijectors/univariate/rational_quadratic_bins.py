"""The bins of a rational-quadratic spline that positions fall in."""

from typing import NamedTuple

import torch
from torch import Tensor

from .rational_quadratic_form import Form

__all__ = ["Bin", "Choice", "locate"]


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


def locate(u: Tensor, params: Tensor, form: Form, inverse: bool) -> tuple[Choice, Bin]:
    """The bins, and the positions in them of `u`: of results of the spline if `inverse`."""
    k = form.num_bins
    # Parameters first: all operations run along the memory of many splines, not of one.
    params = params.movedim(-1, 0)
    search = _pass_knots if torch.compiler.is_compiling() or u.numel() > 4096 else _count_knots
    index, shares, share, before = search(u, form.logits(params), inverse, form.least[inverse])
    w, h = (least + (1 - k * least) * t for least, t in zip(form.least, share))
    x, y = (_knot(index, t, k, least) for least, t in zip(form.least, before))
    index = index.long()
    slopes = form.all_slopes(params[2 * k :])
    if torch.compiler.is_compiling():
        a0, a1 = _select(slopes, index), _select(slopes, index + 1)
        d0, d1 = form.slope(a0), form.slope(a1)
    else:
        a = slopes.expand(-1, *index.shape).gather(0, torch.stack((index, index + 1)))
        (a0, a1), (d0, d1) = a, form.slope(a)
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


def _knot(index: Tensor | int, sums: Tensor, num_bins: int, least: float) -> Tensor:
    """Knots from their numbers and the sums of shares before them."""
    return (least * index - 0.5) + (1 - num_bins * least) * sums


_Found = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]


def _pass_knots(u: Tensor, logits: Tensor, axis: bool, least: float) -> _Found:
    """The bins of `u`, all shares, those of the bins, and the sums of those before them.

    Going from knot to knot, and selecting by arithmetic on zeros and ones, is faster than
    searching and indexing where tensors are large, and compiles to one loop over memory.
    """
    k = len(logits) // 2
    shares = [logits[:k].softmax(0), logits[k:].softmax(0)]
    index, before = torch.zeros_like(u), [torch.zeros_like(u)] * 2
    share = [t[0] for t in shares]
    total = share[axis]
    for j in range(1, k):
        passed = (u >= _knot(j, total, k, least)).to(u.dtype)
        index = index + passed
        before = [torch.addcmul(one, passed, t[j - 1]) for one, t in zip(before, shares)]
        share = [torch.lerp(one, t[j], passed) for one, t in zip(share, shares)]
        total = total + shares[axis][j]
    return index, shares, share, before


def _count_knots(u: Tensor, logits: Tensor, axis: bool, least: float) -> _Found:
    """The results of `_pass_knots` from all knots of both axes at once: few operations."""
    k = len(logits) // 2
    shares = logits.unflatten(0, (2, k)).softmax(1)
    sums = torch.cat((torch.zeros_like(shares[:, :1]), shares[:, :-1].cumsum(1)), dim=1)
    numbers = torch.arange(1, k, device=u.device, dtype=u.dtype).view(-1, *[1] * u.dim())
    index = (u >= _knot(numbers, sums[int(axis), 1:], k, least)).sum(0)
    table = torch.cat((shares, sums)).expand(-1, -1, *u.shape)
    widths, heights, x, y = table.gather(1, index.expand(4, 1, *u.shape)).squeeze(1)
    return index.to(u.dtype), [*shares], [widths, heights], [x, y]


def _select(table: Tensor, index: Tensor) -> Tensor:
    """The entries `index`, of shape (...), of tables (entries, ...) that broadcast.

    Selecting entry by entry fuses with what comes before and after, a gather does not.
    """
    selected = table[0]
    for j in range(1, len(table)):
        selected = torch.where(index >= j, table[j], selected)
    return selected
