"""The other direction of a univariate bijection."""

from dataclasses import dataclass

from torch import Tensor

from .base import Univariate

__all__ = ["Inverse"]


@dataclass(frozen=True)
class Inverse(Univariate):
    r"""The inverse of a bijection, :math:`y = f^{-1}(x; \theta)`, with the same parameters.

    Layers apply their univariate from latent to data. normflows, nflows and zuko apply the
    formula of a rational-quadratic spline from data to latent, which is not the same family of
    densities, since the inverse of such a spline is none. `Inverse(RationalQuadratic())` in a
    layer is the spline layer of these libraries; on two moons it learns better in
    autoregressive layers.

    Args:
        bijection: the bijection :math:`f`, any of the univariate ones.

    Shapes: x (...), params (..., num_params), y and log|dy/dx| (...).

    Raises:
        TypeError: `bijection` is not an instance of `Univariate`.

    References:
        Durkan et al., Neural spline flows, 2019, section 3.1 (https://arxiv.org/abs/1906.04032)

    Example:
        >>> spline = mb.RationalQuadratic(num_bins=4)
        >>> x, params = torch.randn(5), torch.randn(5, 11)
        >>> torch.equal(mb.Inverse(spline)(x, params)[0], spline(x, params, inverse=True)[0])
        True
    """

    bijection: Univariate

    def __post_init__(self) -> None:
        if not isinstance(self.bijection, Univariate):
            raise TypeError(
                "Inverse: bijection must be a univariate one, such as RationalQuadratic(), got "
                f"{self.bijection!r}"
            )

    @property
    def num_params(self) -> int:
        """Number of parameters of one bijection."""
        return self.bijection.num_params

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        return self.bijection.transform(x, params, not inverse)

    def pull_back(
        self, y: Tensor, params: Tensor, inverse: bool, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `x` that leads to `y`, and gradients there, as the bijection finds them."""
        return self.bijection.pull_back(y, params, not inverse, grad_y, grad_log)
