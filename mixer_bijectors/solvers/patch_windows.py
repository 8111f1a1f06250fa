"""Sequential sampling of patches, one at a time or many at once in a moving window."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["METHODS", "PredictNext", "SamplingCost", "sample_in_windows"]

METHODS = ("auto", "parallel", "sequential")


# Takes a patch of each sequence, (batch, features), and its position; returns the log-scale and
# the shift of the next one. The patches are those at all positions in turn.
PredictNext = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Predict(Protocol):
    """A causal net with a cache of the patches that it has read."""

    def __call__(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Log-scales and shifts of patches `start + 1` and on, each of the shape of `x`.

        From `x`, patches `start` and on, and those that came before at earlier positions.
        """

    def by_patch(self) -> PredictNext:
        """Parameters of one patch from those before it, faster than in a window of one."""

    def keep(self, rows: Tensor) -> None:
        """Drop the sequences that are not in `rows`."""


@dataclass
class SamplingCost:
    """Calls of the net while sampling, and patches per sample that it read in all of them."""

    calls: int = 0
    patches: float = 0.0


# The cost of a call of the net beside that of the patches that it reads, in patches: launching
# kernels and reading weights. It was measured on CPUs; for GPUs it is an estimate. To read by
# patch takes half of it.
_OVERHEAD_ON_CPU, _OVERHEAD_ELSEWHERE = 24, 2000
# Passes until a patch settles, measured on trained models with windows of any size.
_PASSES = 12


class _Window:
    """The number of patches to compute at once, at least as many as the costs above ask for."""

    def __init__(self, method: str, batch: int, num_patches: int, device: torch.device) -> None:
        cpu = device.type == "cpu"
        self.overhead = _OVERHEAD_ON_CPU if cpu else _OVERHEAD_ELSEWHERE
        self.cost = self.cost_one_by_one = 0
        self.may_give_up = method == "auto"
        # These sizes were the fastest for one image, of 256 and of 1024 patches.
        self.size = max(2 * self.overhead // batch, num_patches // (4 * batch), 2)
        self.size = min(self.size, num_patches)
        one_by_one = num_patches * (self.overhead // 2 + batch)
        passes = _PASSES * (1 + num_patches / (_PASSES + self.size))
        windows = passes * (self.overhead + batch * self.size)
        if method == "sequential" or (method == "auto" and one_by_one <= windows):
            self.size = 1

    def update(self, batch: int, length: int, advance: int) -> None:
        """Give windows up for good once they have cost thrice as much as single patches would.

        Some passes are free, since the first patches take long to settle.
        """
        self.cost += self.overhead + batch * length
        self.cost_one_by_one += advance * (self.overhead // 2 + batch)
        first = 2 * _PASSES * (self.overhead + batch * self.size)
        allowed = first + 3 * self.cost_one_by_one
        if self.may_give_up and self.cost > allowed:
            self.size = 1


def sample_in_windows(
    predict: Predict, z: Tensor, *, method: str, tol: float
) -> tuple[Tensor, Tensor, SamplingCost]:
    r"""Solve :math:`x_i = z_i \exp(a_i) + b_i`, where x before i predicts :math:`a_i, b_i`.

    The first patch is that of `z`. After it comes a window of patches that are computed all at
    once, from guesses of each other. The first of them is correct then; so is each one before
    which no guess in the window was wrong by more than `tol` times its size, or times 1 if it
    is smaller. The window moves forward by the number of correct patches. So there are at most
    as many passes as patches, for all values, and a window of one patch is the sequential
    solve. Samples that are correct up to the last patch are left out of later passes.

    Args:
        predict: the net.
        z: latents, (batch, patches, features).
        method: 'sequential' for windows of one patch, 'parallel' for wide ones, 'auto' for
            the faster of the two, which becomes single patches where wide windows are slow.
        tol: the tolerance.

    Returns:
        The samples, their log-scales, and the cost. Windows of more than one patch synchronise
        with the host once for each pass.
    """
    batch, num_patches, _ = z.shape
    if not batch:
        return z, z, SamplingCost()
    window = _Window(method, batch, num_patches, z.device)
    cost = SamplingCost()
    x, log_scales = z.clone(), torch.zeros_like(z)
    results = x, log_scales
    rows: Tensor | None = None  # of the samples still worked on, once some are left out
    log_scale = shift = torch.zeros_like(z[:, :1])
    num_final = num_guessed = 1
    while num_final < num_patches and window.size > 1:
        end = min(num_final + window.size, num_patches)
        length = end - num_final
        if end > num_guessed:
            # The scale and shift of the last patch are a good guess for those that follow.
            guess = torch.addcmul(shift[:, -1:], z[:, num_guessed:end], log_scale[:, -1:].exp())
            x[:, num_guessed:end] = _clamp(guess)
        num_guessed = max(num_guessed, end)
        log_scale, shift = predict(x.narrow(1, num_final - 1, length), num_final - 1)
        new = torch.addcmul(shift, z.narrow(1, num_final, length), log_scale.exp())
        log_scales.narrow(1, num_final, length).copy_(log_scale)
        cost.calls += 1
        cost.patches += length * x.shape[0] / batch
        guessed = x.narrow(1, num_final, length)
        num_correct = _count_correct(guessed, new, tol)
        finished = num_correct == num_patches - num_final
        least = num_correct.masked_fill(finished, length).amin()
        advance, num_finished = torch.stack((least, finished.sum())).tolist()
        x[:, num_final : num_final + advance] = new[:, :advance]
        # Patches after one that is not finite are not finite either; other samples are not
        # affected.
        not_finite = ~new[:, advance - 1 : advance].isfinite().all(2, keepdim=True)
        x[:, num_final + advance : end] = torch.where(
            not_finite, torch.nan, _clamp(new[:, advance:])
        )
        num_final += advance
        window.update(x.shape[0], length, advance)
        # To leave out a few finished samples costs more than to compute them.
        if num_final < num_patches and 8 * num_finished >= x.shape[0]:
            for result, values in zip(results, (x, log_scales)):
                _write(result, rows, values)
            unfinished = finished.logical_not().nonzero().squeeze(1)
            rows = unfinished if rows is None else rows[unfinished]
            x, log_scales, z, log_scale, shift = (
                t[unfinished] for t in (x, log_scales, z, log_scale, shift)
            )
            predict.keep(unfinished)
    if num_final < num_patches:
        _solve_by_patch(predict.by_patch(), z, x, log_scales, num_final)
        cost.calls += num_patches - num_final
        cost.patches += (num_patches - num_final) * x.shape[0] / batch
    for result, values in zip(results, (x, log_scales)):
        _write(result, rows, values)
    return *results, cost


def _solve_by_patch(
    predict: PredictNext, z: Tensor, x: Tensor, log_scales: Tensor, start: int
) -> None:
    """Write patches `start` and on into `x` and `log_scales`."""
    latents = z.unbind(1)
    patches, scales = [x[:, start - 1]], []
    for i in range(start, len(latents)):
        log_scale, shift = predict(patches[-1], i - 1)
        patches.append(torch.addcmul(shift, latents[i], log_scale.exp()))
        scales.append(log_scale)
    x[:, start:] = torch.stack(patches[1:], 1)
    log_scales[:, start:] = torch.stack(scales, 1)


def _write(result: Tensor, rows: Tensor | None, values: Tensor) -> None:
    if rows is not None:
        result[rows] = values


def _count_correct(guess: Tensor, new: Tensor, tol: float) -> Tensor:
    """The number of patches of each sample that follow correct guesses, (batch,)."""
    same = (new - guess).abs() <= tol * new.abs().clamp(min=1)
    same |= new.isnan() & guess.isnan()
    wrong = ~same.all(2)
    wrong[:, -1] = True
    # The first patch that proves a guess wrong does not itself depend on it.
    return wrong.long().argmax(1) + 1


def _clamp(guess: Tensor) -> Tensor:
    """A guess clamped to finite values, which do not overflow in the net.

    Causal attention multiplies later patches by zero, which hides finite values alone.
    """
    limit = torch.finfo(guess.dtype).max ** 0.25
    return guess.nan_to_num(0.0).clamp(-limit, limit)
