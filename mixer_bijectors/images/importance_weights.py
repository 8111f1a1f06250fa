"""Bits per dimension by several samples of the noise of dequantisation."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from .levels import bits_per_dim, dequantize

__all__ = ["importance_weighted_bits"]


@torch.no_grad()
def importance_weighted_bits(
    model: Any,
    x: Tensor,
    k: int,
    *,
    labels: Tensor | None = None,
    chunk_size: int = 64,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    r"""Bits per dimension of 8-bit images, bounded from above by `k` samples of noise.

    .. math:: -\frac{1}{D} \log_2 \frac{1}{k} \sum_{j=1}^{k} \frac{p(x + v_j)}{q(v_j \mid x)}

    In expectation the bound falls with `k`, to the bits of the discrete distribution that the
    density gives to levels. With `k = 1` it is the bound of `bits_per_dim`. It serves uniform
    dequantisation and a `VariationalDequantization` alike. The logarithm of the mean is taken
    in float64.

    Args:
        model: a model of images, whose `log_prob` takes what `dequantize` returns.
        x: images of dtype uint8, (batch, channels, height, width).
        k: number of samples of noise for each image.
        labels: classes (batch,), for a class-conditional model.
        chunk_size: images with noise that are in the model at once; it changes memory and time,
            and no random number.
        dtype: floating point type of the images with noise, float32 or float64.
        generator: source of the noise; by default the global one.
        seeds: in place of a generator, a seed for each image; the first sample of noise is the
            one that `dequantize` draws from them.

    Returns:
        Bits per dimension of each image, (batch,), in float64.

    Raises:
        TypeError: `x` is not uint8, or `dtype` neither float32 nor float64.
        ValueError: `k` or `chunk_size` is below 1, or labels and seeds are not as many as
            images.

    References:
        Burda et al., Importance weighted autoencoders, 2015 (https://arxiv.org/abs/1509.00519)

        Ho et al., Flow++, 2019 (https://arxiv.org/abs/1902.00275)

    Example:
        >>> model = mb.MixerFlow((1, 8, 8), 2, num_layers=2, hidden_features=16)
        >>> x = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
        >>> importance_weighted_bits(model, x, 10).shape
        torch.Size([5])
    """
    for argument, value in {"k": k, "chunk_size": chunk_size}.items():
        if value < 1:
            raise ValueError(
                f"importance_weighted_bits: {argument} must be at least 1, got {value}"
            )
    if labels is not None and labels.shape != x.shape[:1]:
        raise ValueError(
            f"importance_weighted_bits: expected labels of shape ({len(x)},), got "
            f"{tuple(labels.shape)}"
        )
    samples = max(1, chunk_size // max(1, len(x)))  # of each image in one chunk
    chunks = []
    for first in range(0, k, samples):
        numbers = range(first, min(first + samples, k))
        # Sample by sample, so that the random numbers are those of any other chunk size.
        noisy = torch.cat(
            [
                dequantize(x, dtype=dtype, generator=generator, seeds=_nth_seeds(seeds, number))
                for number in numbers
            ]
        )
        given = () if labels is None else (labels.repeat(len(numbers)).split(chunk_size),)
        chunks += [model.log_prob(*part) for part in zip(noisy.split(chunk_size), *given)]
    log_weights = torch.cat(chunks).unflatten(0, (k, len(x))).double()
    return bits_per_dim(log_weights.logsumexp(0) - math.log(k), x.shape[1:])


def _nth_seeds(seeds: Sequence[int] | None, number: int) -> list[int] | None:
    """Seeds of the sample of this number, those given for the first."""
    if seeds is None or number == 0:
        return None if seeds is None else list(seeds)
    return [Random(f"{seed} {number}").getrandbits(62) for seed in seeds]
