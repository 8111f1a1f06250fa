"""Images without the noise that a model was trained with."""

from typing import Any

import torch
from torch import Tensor

from .._checks import check_input

__all__ = ["denoise"]


def denoise(model: Any, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
    r"""The mean of the images that `x` may be noisy versions of, by Tweedie's formula.

    .. math:: x + \sigma^2 \, \nabla_x \log p(x)

    A model of images with Gaussian noise of standard deviation :math:`\sigma` samples noisy
    images; this takes the noise off again. It costs one gradient of the density.

    Args:
        model: a density of noisy images, with `log_prob(x)`, or `log_prob(x, labels)`.
        x: noisy images, (batch, channels, height, width).
        sigma: standard deviation of the noise that the model was trained with, on the scale
            of `x`.
        labels: the images' classes, for a class-conditional model.

    Returns:
        Images of the shape of `x`, without a gradient of their own.

    Raises:
        ValueError: a `sigma` that is negative; a model that gives anything but one
            log-density for each image.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024
        (https://arxiv.org/abs/2412.06329)

        Efron, Tweedie's formula and selection bias, 2011
        (https://doi.org/10.1198/jasa.2011.tm11181)

    Example:
        >>> model = mb.TarFlow((1, 8, 8), 2, channels=64, num_blocks=2, layers_per_block=1)
        >>> x, _ = model.sample(4)
        >>> denoise(model, x, sigma=0.1).shape
        torch.Size([4, 1, 8, 8])
    """
    check_input("denoise", x, "channels", "height", "width")
    if not sigma >= 0:
        raise ValueError(f"denoise: sigma must not be negative, got {sigma}")
    # Trainers evaluate in inference mode, whose tensors take no gradients; copies do.
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        given = () if labels is None else (labels.clone(),)
        log_prob = model.log_prob(x, *given)
        if log_prob.shape != x.shape[:1]:
            raise ValueError(
                f"denoise: {type(model).__name__} gave log-densities of shape "
                f"{tuple(log_prob.shape)}, expected {tuple(x.shape[:1])}, one for each image"
            )
        (score,) = torch.autograd.grad(log_prob.sum(), x)
        return x.detach() + sigma**2 * score
