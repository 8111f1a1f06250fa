"""Invertible linear maps."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_flag
from ..bijection import Bijection
from ..flow import no_autocast

__all__ = ["LULinear"]


class LULinear(Bijection):
    r"""Invertible matrix :math:`W = P L U` whose log-determinant is the sum of a diagonal.

    The data-to-latent direction, which training runs, is the product :math:`z = W x`; the
    latent-to-data direction solves with the two triangles, and never forms an inverse. `P` is
    a fixed permutation, `L` has a unit diagonal, and the diagonal of `U` is a fixed sign times
    an exponential. Like LAPACK, one matrix holds both triangles: `factors` has `L` below its
    diagonal, `U` above, and :math:`\log |u_{ii}|` on it; all zeros is the identity.

    Args:
        features: number of features.
        identity_init: start as the identity; otherwise as a random rotation, as Glow does.

    Shapes: (batch, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input is not of shape (batch, features).

    References:
        Kingma and Dhariwal, Glow, 2018, section 3.2 (https://arxiv.org/abs/1807.03039)

    Example:
        >>> layer = LULinear(4, identity_init=False)
        >>> x = torch.randn(5, 4)
        >>> z, _ = layer.inverse(x)
        >>> torch.allclose(z, x @ layer.weight().T), torch.allclose(layer(z)[0], x, atol=1e-5)
        (True, True)
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, features: int, *, identity_init: bool = True) -> None:
        super().__init__((features,))
        check_flag(type(self).__name__, "identity_init", identity_init)
        self.features = features
        self.identity_init = identity_init
        factors = torch.zeros(features, features)
        permutation = torch.eye(features)
        sign = torch.ones(features)
        if not identity_init:
            rotation, _ = torch.linalg.qr(torch.randn(features, features))
            p, lower, upper = torch.linalg.lu(rotation)
            permutation = p
            sign = upper.diagonal().sign()
            factors = lower.tril(-1) + upper.triu(1) + upper.diagonal().abs().log().diag()
        self.factors = nn.Parameter(factors)
        # A matrix of zeros and ones, which averages of models leave as it is; indices would be
        # averaged as numbers.
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", sign)
        self.register_load_state_dict_pre_hook(_read_indices)

    def weight(self) -> Tensor:
        """The matrix `W` of :math:`z = W x`, of shape (features, features)."""
        lower, upper = self._triangles()
        with no_autocast(lower):
            return (lower @ upper).index_select(0, self.permutation.argmax(1))

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        log_abs_det = self.factors.diagonal().sum()
        if inverse:
            weight = self.weight()
            with no_autocast(x):
                return F.linear(x.to(weight.dtype), weight), log_abs_det
        lower, upper = self._triangles()
        # Batches are rows, so each solve is with the transposed triangle from the right.
        y = x.to(lower.dtype).index_select(1, self.permutation.argmax(0))
        y = torch.linalg.solve_triangular(
            lower.mT, y, upper=True, left=False, unitriangular=True
        )
        return torch.linalg.solve_triangular(upper.mT, y, upper=False, left=False), -log_abs_det

    def _triangles(self) -> tuple[Tensor, Tensor]:
        # At least float32, as triangular solves do not exist in half precision.
        factors = self.factors.to(torch.promote_types(self.factors.dtype, torch.float32))
        diagonal = factors.diagonal()
        lower = factors.tril(-1) + torch.ones_like(diagonal).diag()
        upper = factors.triu(1) + (self.sign * diagonal.exp()).diag()
        return lower, upper


def _read_indices(
    layer: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Convert the permutation of an older state_dict, which holds indices, to a matrix."""
    key = f"{prefix}permutation"
    permutation = state_dict.get(key)
    if permutation is not None and permutation.dim() == 1:
        state_dict[key] = F.one_hot(permutation, len(permutation)).to(torch.get_default_dtype())
