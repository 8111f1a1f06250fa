"""Additive and affine bijections."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Univariate, check_number

__all__ = ["Additive", "Affine", "SigmoidAffine", "pull_back_affine"]


def pull_back_affine(
    y: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    inverse: bool,
    grad_y: Tensor,
    grad_log: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The `x` of which :math:`x \, e^s + t` or its inverse makes `y`, and gradients there.

    Returns:
        `x`, and the gradients by `x`, by each log-scale and by each shift, of the shape of `y`.
    """
    scale = log_scale.exp()
    if inverse:
        x, grad_x = torch.addcmul(shift, y, scale), grad_y / scale
        return x, grad_x, -torch.addcmul(grad_log, grad_y, y), -grad_x
    rest = y - shift
    return rest / scale, grad_y * scale, torch.addcmul(grad_log, grad_y, rest), grad_y


@dataclass(frozen=True)
class Additive(Univariate):
    r"""Shift by one parameter, :math:`y = x + t`; volume preserving.

    References:
        Dinh et al., NICE, 2014 (https://arxiv.org/abs/1410.8516)

    Example:
        >>> y, log_derivative = Additive()(torch.zeros(5), torch.full((5, 1), 2.0))
        >>> y[0].item(), log_derivative[0].item()
        (2.0, 0.0)
    """

    num_params: ClassVar[int] = 1

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        shift = params[..., 0]
        y = x - shift if inverse else x + shift
        return y, torch.zeros_like(y)


@dataclass(frozen=True)
class Affine(Univariate):
    r"""Scale and shift, :math:`y = x \, e^{s} + t`, with a soft bound on the log-scale.

    With parameters :math:`(a, t)`, the log-scale is :math:`s = a / (1 + |a| / c)`, where
    :math:`c` is `max_log_scale`: no single layer scales by more than :math:`e^c`, for any
    output of the conditioner. So deep stacks neither explode in training nor lose the precision
    that their inverse needs. The bound is part of the bijection; both directions are exact.

    Args:
        max_log_scale: the bound :math:`c`. 3 lets a single layer scale by 20 and is meant for
            stacks of about ten; the more layers, the smaller it should be.

    Raises:
        TypeError: a bound for each feature instead of one for all.
        ValueError: a bound that is not positive.

    References:
        Dinh et al., Density estimation using Real NVP, 2016 (https://arxiv.org/abs/1605.08803)

    Example:
        >>> x, params = torch.randn(8, 3), torch.randn(8, 3, 2)
        >>> y, log_derivative = Affine()(x, params)
        >>> torch.allclose(Affine()(y, params, inverse=True)[0], x, atol=1e-5)
        True
    """

    num_params: ClassVar[int] = 2
    max_log_scale: float = 3.0

    def __post_init__(self) -> None:
        check_number("Affine", "max_log_scale", self.max_log_scale)
        if not self.max_log_scale > 0:
            raise ValueError(
                f"Affine: max_log_scale must be positive, got {self.max_log_scale}"
            )

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        a, shift = params.unbind(-1)
        log_scale = a / (1 + a.abs() / self.max_log_scale)
        if inverse:
            log_scale = -log_scale
            y = (x - shift) * log_scale.exp()
        else:
            y = torch.addcmul(shift, x, log_scale.exp())
        return y, log_scale.expand_as(y)

    def pull_back(
        self, y: Tensor, params: Tensor, inverse: bool, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `x` that leads to `y`, and gradients there, in closed form."""
        a, shift = params.to(torch.promote_types(y.dtype, torch.float32)).unbind(-1)
        bend = 1 + a.abs() / self.max_log_scale
        x, grad_x, grad_scale, grad_shift = pull_back_affine(
            y, a / bend, shift, inverse, grad_y, grad_log
        )
        # Parameter by parameter in memory, as couplings compute them.
        both = torch.stack((grad_scale / bend.square(), grad_shift), dim=-2)
        grad_params = both.transpose(-1, -2).sum_to_size(params.shape).to(params.dtype)
        return x.to(y.dtype), grad_x.to(y.dtype), grad_params


@dataclass(frozen=True)
class SigmoidAffine(Univariate):
    r"""Scale and shift of Jet, :math:`x = (y + t) \cdot 2 \sigma(a)` from data to latent.

    With parameters :math:`(a, t)`, the scale towards the latent is at most 2, where `Affine`
    bounds it alike on both sides. It ends at :math:`e^{-12}`, so that no parameters make the
    inverse overflow.

    References:
        Kolesnikov et al., Jet: a modern Transformer-based normalizing flow, 2024, section 2
        (https://arxiv.org/abs/2412.15129)

    Example:
        >>> x, params = torch.randn(8, 3), torch.randn(8, 3, 2)
        >>> y, log_derivative = SigmoidAffine()(x, params, inverse=True)
        >>> bool((log_derivative < 0.6932).all())
        True
    """

    num_params: ClassVar[int] = 2

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        a, shift = params.unbind(-1)
        log_scale = (math.log(2) - F.softplus(-a)).clamp(min=-12.0)
        if inverse:
            return (x + shift) * log_scale.exp(), log_scale.expand_as(x)
        return x * (-log_scale).exp() - shift, -log_scale.expand_as(x)
