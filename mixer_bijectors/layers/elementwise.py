"""Learned elementwise bijections."""

import torch
from torch import Tensor, nn

from .._checks import check_univariate
from ..bijection import Bijection
from ..univariate import Affine, Univariate

__all__ = ["Elementwise"]


class Elementwise(Bijection):
    r"""One learned univariate bijection for each feature, the same for every sample.

    Args:
        features: number of features.
        univariate: the family of bijections; its parameters are learned and start at zero,
            the identity.

    Shapes: (batch, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point, or of higher precision than the parameters;
            `univariate` is a class.
        ValueError: the input is not of shape (batch, features).

    Example:
        >>> layer = Elementwise(3, mb.Affine())
        >>> x = torch.randn(2, 3)
        >>> torch.equal(layer(x)[0], x)
        True
    """

    def __init__(self, features: int, univariate: Univariate = Affine()) -> None:
        super().__init__((features,))
        check_univariate(type(self).__name__, univariate)
        self.features = features
        self.univariate = univariate
        self.params = nn.Parameter(torch.zeros(features, univariate.num_params))

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        y, log_derivative = self.univariate(x, self.params, inverse)
        return y, log_derivative.sum(1)
