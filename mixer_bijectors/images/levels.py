"""From 8-bit images to densities and back: dequantisation and bits per dimension."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "add_noise",
    "bits_per_dim",
    "dequantize",
    "levels_and_noise",
    "quantize",
]

_LEVELS = 256
_NOISE_LEVELS = 2**16


def dequantize(
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    r"""8-bit images with uniform noise added, in [-1, 1).

    .. math:: \tilde x = (x + u) / 128 - 1, \qquad u \sim \mathrm{uniform}[0, 1)

    The noise is drawn on a grid of :math:`2^{-16}`, with which the result is exact in float32:
    rounding never carries a pixel into the next level, or to 1, so `quantize` returns `x`.

    Args:
        x: images of dtype uint8, any shape.
        dtype: floating point type of the result, float32 or float64.
        generator: source of the noise; by default the global one.
        seeds: in place of a generator, a seed for each image of a batch.

    Raises:
        TypeError: `x` is not uint8, or `dtype` neither float32 nor float64.
        ValueError: seeds are not as many as images.

    References:
        Theis et al., A note on the evaluation of generative models, 2015
        (https://arxiv.org/abs/1511.01844)

    Example:
        >>> x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> torch.equal(quantize(dequantize(x)), x)
        True
    """
    _check_levels("dequantize", x, dtype)
    noise = _draw(partial(torch.randint, _NOISE_LEVELS), x, dtype, generator, seeds)
    return (x + noise / _NOISE_LEVELS) / (_LEVELS / 2) - 1


def add_noise(
    x: Tensor,
    sigma: float,
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    r"""8-bit images in [-1, 1), each level at its middle, with Gaussian noise added.

    .. math:: \tilde x = (x + 1/2) / 128 - 1 + \sigma \epsilon, \qquad
        \epsilon \sim \mathrm{normal}(0, 1)

    Models of such images sample better than those of dequantised ones, once `denoise` takes
    the noise off again; their densities bound no discrete likelihood.

    Args:
        x: images of dtype uint8, any shape.
        sigma: standard deviation of the noise.
        dtype: floating point type of the result, float32 or float64.
        generator: source of the noise; by default the global one.
        seeds: in place of a generator, a seed for each image of a batch.

    Raises:
        TypeError: `x` is not uint8, or `dtype` neither float32 nor float64.
        ValueError: `sigma` is negative, or seeds are not as many as images.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024
        (https://arxiv.org/abs/2412.06329)

    Example:
        >>> x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> torch.equal(quantize(add_noise(x, 0.0)), x)
        True
    """
    _check_levels("add_noise", x, dtype)
    if not sigma >= 0:
        raise ValueError(f"add_noise: sigma must not be negative, got {sigma}")
    noise = _draw(torch.randn, x, dtype, generator, seeds)
    return (x + 0.5) / (_LEVELS / 2) - 1 + sigma * noise


def _draw(
    sample: Callable[..., Tensor],
    x: Tensor,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    seeds: Sequence[int] | None,
) -> Tensor:
    """Noise of the shape of `x`, with seeds the same for an image whatever batch it is in."""
    where: dict[str, Any] = {"dtype": dtype, "device": x.device}
    if seeds is None:
        return sample(x.shape, generator=generator, **where)
    if len(seeds) != len(x):
        raise ValueError(f"expected a seed for each of {len(x)} images, got {len(seeds)} seeds")
    each = torch.Generator(x.device)
    return torch.stack(
        [sample(x.shape[1:], generator=each.manual_seed(seed), **where) for seed in seeds]
    )


def _check_levels(function: str, x: Tensor, dtype: torch.dtype) -> None:
    kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
    if kind != torch.uint8:
        raise TypeError(f"{function}: expected a tensor of dtype torch.uint8, got {kind}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{function}: dtype must be float32 or float64, got {dtype}")


def quantize(x: Tensor) -> Tensor:
    """Images in [-1, 1) as 8-bit images; what lies outside becomes black or white.

    Args:
        x: floating point images, any shape.

    Raises:
        TypeError: `x` is not floating point.

    Example:
        >>> quantize(torch.tensor([-1.0, 0.0, 0.999, 3.0]))
        tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    if not x.is_floating_point():
        raise TypeError(f"quantize: expected floating point images in [-1, 1), got {x.dtype}")
    levels = ((x + 1) * (_LEVELS / 2)).floor().clamp(0, _LEVELS - 1)
    return levels.nan_to_num(0).to(torch.uint8)


def levels_and_noise(x: Tensor) -> tuple[Tensor, Tensor]:
    """The levels and the noise in [0, 1) of dequantised images, both of the dtype of `x`.

    It undoes `dequantize`, with no rounding.

    Args:
        x: images in [-1, 1), any shape.

    Example:
        >>> levels_and_noise(torch.tensor([-1.0, 0.0, 0.99609375]))
        (tensor([  0., 128., 255.]), tensor([0.0000, 0.0000, 0.5000]))
    """
    scaled = (x + 1) * (_LEVELS / 2)
    levels = scaled.floor()
    return levels, scaled - levels


def bits_per_dim(log_prob: Tensor, image_shape: Sequence[int]) -> Tensor:
    r"""Bits per dimension of 8-bit images from log-densities of images in [-1, 1).

    .. math:: -\frac{\log p(\tilde x)}{D \log 2} + \log_2 128

    The second term moves the density from the scale of [-1, 1) to that of 256 levels, so that
    the mean over uniform noise bounds the discrete negative log-likelihood from above.

    Args:
        log_prob: log-densities in nats, any shape.
        image_shape: (channels, height, width).

    Raises:
        ValueError: the shape of a batch, of more than three sizes.

    Example:
        >>> uniform = -3072 * torch.tensor(2.0).log()  # on [-1, 1): every level is as likely
        >>> round(bits_per_dim(uniform, (3, 32, 32)).item(), 4)
        8.0
    """
    if len(image_shape) > 3:
        raise ValueError(
            "bits_per_dim: image_shape must be that of one image, (channels, height, width), "
            f"got {tuple(image_shape)}; of a batch x it is x.shape[1:]"
        )
    return -log_prob / (math.prod(image_shape) * math.log(2)) + math.log2(_LEVELS / 2)
