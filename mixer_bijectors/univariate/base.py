"""The base class of univariate bijections, and checks of their arguments."""

import math
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["Univariate", "check_bound", "check_count", "check_number"]


class Univariate(ABC):
    """An increasing bijection of the real line, elementwise, with `num_params` parameters each.

    Called as `univariate(x, params, inverse=False)` with `x` of any shape (...) and `params`
    of shape (..., num_params), which broadcasts against that of `x`, it returns `y` and
    log|dy/dx|, both of the shape of `x`. Parameters of zero are the identity. `y` comes in the
    dtype of `x`, the derivative in at least float32.

    A subclass defines `num_params` and `transform`.

    Raises:
        TypeError: `x` or `params` is not floating point.
        ValueError: `params` is not of shape (..., num_params), or does not broadcast.
    """

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Number of parameters of one bijection."""

    @abstractmethod
    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back; all is of one dtype, at least float32."""

    def __call__(
        self, x: Tensor, params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        self._check(x, params)
        compute = torch.promote_types(x.dtype, torch.float32)
        y, log_derivative = self.transform(x.to(compute), params.to(compute), inverse)
        return y.to(x.dtype), log_derivative

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # A `pull_back` in closed form is right only for the map that it was written with.
        if "transform" in vars(cls) and "pull_back" not in vars(cls):
            cls.pull_back = Univariate.pull_back  # type: ignore[method-assign]

    def pull_back(
        self, y: Tensor, params: Tensor, inverse: bool, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `x` that `self(x, params, inverse)` maps to `y`, and gradients of a loss there.

        Training that keeps no activations runs this in the backward pass. A subclass whose
        inverse and derivatives have terms in common may define it in closed form.

        Args:
            y: results, (...).
            params: the parameters, (..., num_params).
            inverse: the direction that led to `y`.
            grad_y: the gradient of the loss by `y`, (...).
            grad_log: the gradient of the loss by log|dy/dx|, (...).

        Returns:
            `x`, the gradient by `x`, both (...), and that by `params`, of its shape.
        """
        with torch.no_grad():
            x = self(y, params, not inverse)[0]
        x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
        with torch.enable_grad():
            results = self(x, params, inverse)
        pairs = [(r, g) for r, g in zip(results, (grad_y, grad_log)) if r.requires_grad]
        outputs, given = zip(*pairs)
        grad_x, grad_params = torch.autograd.grad(outputs, (x, params), given)
        return x.detach(), grad_x, grad_params

    def _check(self, x: Tensor, params: Tensor) -> None:
        for name, tensor in (("x", x), ("params", params)):
            if not tensor.is_floating_point():
                raise TypeError(
                    f"{type(self).__name__}: expected {name} to be floating point, got "
                    f"{tensor.dtype}"
                )
        *leading, size = params.shape or (0,)
        # No membership test, which cannot be traced where sizes are symbols.
        fits = size == self.num_params and len(leading) <= x.dim()
        if not (fits and all(a == 1 or a == b for a, b in zip(leading[::-1], x.shape[::-1]))):
            raise ValueError(
                f"{type(self).__name__}: expected params of shape (..., {self.num_params}) "
                f"that broadcasts against x of shape {tuple(x.shape)}, got "
                f"{tuple(params.shape)}"
            )


def check_number(name: str, argument: str, value: object) -> None:
    """Raise unless `value` is one number, rather than a tensor or list of one per feature."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name}: {argument} must be one number for all features, got a "
            f"{type(value).__name__}; scale the features before and after instead"
        )


def check_bound(name: str, bound: float) -> None:
    """Raise unless the bound of an interval is one number, positive and finite."""
    check_number(name, "bound", bound)
    if not 0 < bound < math.inf:
        raise ValueError(f"{name}: bound must be positive and finite, got {bound}")


def check_count(name: str, argument: str, count: int, least: int) -> None:
    """Raise unless a number of pieces is a whole number from `least` to 500."""
    if not (isinstance(count, Integral) and least <= count <= 500):
        raise ValueError(
            f"{name}: {argument} must be a whole number from {least} to 500, got {count}"
        )
