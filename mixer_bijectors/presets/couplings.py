"""MixerFlows whose couplings have another bijection, or another net."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from .. import nets
from ..models import MixerFlow
from ..univariate import RationalQuadratic
from ._options import without

__all__ = ["affine", "kan", "spline"]


def affine(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    **options: Any,
) -> MixerFlow:
    """The MixerFlow of the paper: affine couplings with residual perceptrons.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> model = mb.presets.affine((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    return MixerFlow(image_shape, patch_size, num_layers, **options)


def spline(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    **options: Any,
) -> MixerFlow:
    """Couplings of rational-quadratic splines.

    References:
        Durkan et al., Neural spline flows, 2019 (https://arxiv.org/abs/1906.04032)

    Example:
        >>> model = mb.presets.spline((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = without("spline", options, "univariate")
    univariate = RationalQuadratic(num_bins, bound)
    return MixerFlow(image_shape, patch_size, num_layers, univariate=univariate, **options)


def kan(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    grid_size: int = 5,
    **options: Any,
) -> MixerFlow:
    """Affine couplings whose parameters come from Kolmogorov-Arnold networks.

    References:
        Liu et al., KAN: Kolmogorov-Arnold networks, 2024 (https://arxiv.org/abs/2404.19756)

    Example:
        >>> model = mb.presets.kan((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = without("kan", options, "net", "num_blocks")
    net = partial(nets.KAN, grid_size=grid_size)
    return MixerFlow(image_shape, patch_size, num_layers, net=net, **options)
