"""Learned elementwise bijections."""

import torch
from torch import Tensor, nn

from ._checks import check_input, check_univariate
from .flow import Flow
from .univariate import Affine, Univariate

__all__ = ["Elementwise"]


class Elementwise(Flow):
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
        super().__init__()
        check_univariate("Elementwise", univariate)
        self.features = features
        self.univariate = univariate
        self.params = nn.Parameter(torch.zeros(features, univariate.num_params))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, inverse=True)

    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_input("Elementwise", x, self.features, like=self.params)
        y, log_derivative = self.univariate(x, self.params, inverse)
        return y, log_derivative.sum(1).to(x.dtype)
