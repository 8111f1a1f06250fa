"""What a univariate bijection is."""

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["Univariate"]


class Univariate(ABC):
    """An increasing bijection of the real line, elementwise, with `num_params` parameters each.

    Called as `univariate(x, params, inverse=False)` with `x` of any shape (...) and `params`
    of shape (..., num_params), which broadcasts against that of `x`, it returns `y` and
    log|dy/dx|, both of the shape of `x`. Parameters of zero are the identity. The derivative
    comes in at least float32.
    """

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Number of parameters of one bijection."""

    @abstractmethod
    def __call__(
        self, x: Tensor, params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
