"""What a univariate bijection is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

__all__ = ["Univariate"]


class Univariate(ABC):
    """An increasing bijection of the real line, elementwise, with `num_params` parameters each.

    Called as `univariate(x, params, inverse=False)` with `x` of any shape (...) and `params`
    of shape (..., num_params), it returns `y` and log|dy/dx|, both of the shape of `x`.
    Parameters of zero are the identity. The derivative comes in at least float32.
    """

    num_params: ClassVar[int]

    @abstractmethod
    def __call__(
        self, x: Tensor, params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
