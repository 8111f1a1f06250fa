"""What a univariate bijection is."""

import math
from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["Univariate", "check_bound"]


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


def check_bound(name: str, bound: float) -> None:
    """Refuse the bound of an interval that is not positive and finite."""
    if not 0 < bound < math.inf:
        raise ValueError(f"{name}: bound must be positive and finite, got {bound}")
