"""Kolmogorov-Arnold layers."""

from normflows.flows import Reverse

from ..chain import Chain
from ..univariate import MonotoneBSpline
from .elementwise import Elementwise
from .lu_linear import LULinear

__all__ = ["KANLayer"]


class KANLayer(Chain):
    r"""Invertible Kolmogorov-Arnold layer: a linear map, then a spline for each feature.

    From data to latent, :math:`z_i = \phi_i\big(\sum_j W_{ij} x_j\big)` with an `LULinear` map
    and a `MonotoneBSpline` for each feature. Starts as the identity, and takes no context.

    Args:
        features: number of features.
        grid_size: number of grid cells of the splines.
        bound: the splines cover [-bound, bound] and are the identity outside.

    Shapes: (batch, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input is not of shape (batch, features); a grid that `MonotoneBSpline`
            refuses.

    References:
        Liu et al., KAN: Kolmogorov-Arnold networks, 2024 (https://arxiv.org/abs/2404.19756)

    Example:
        >>> layer = KANLayer(4)
        >>> x = torch.randn(10, 4)
        >>> torch.allclose(layer(layer.inverse(x)[0])[0], x, atol=1e-5)
        True
    """

    def __init__(self, features: int, *, grid_size: int = 8, bound: float = 3.0) -> None:
        splines = Elementwise(features, MonotoneBSpline(grid_size, bound))
        # Reversed, so that a density evaluates the spline, and a sample its inverse.
        super().__init__([Reverse(splines), LULinear(features)])
