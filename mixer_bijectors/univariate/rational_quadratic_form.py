"""The form of a rational-quadratic spline, which turns parameters into shares and slopes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .._dependencies import constant_in_graphs

__all__ = ["ENDS", "SLOPES", "Form", "softplus_of_one"]

# Slopes at the two ends: both 1, or one number for both, or a number for each.
ENDS = ("identity", "equal", "free")
SLOPES = ("bounded", "softplus")


# A function, since a compiler takes a number that it finds in a module for an input of the
# graph, of which an autograd function may have none when it is used a second time.
@constant_in_graphs
def _max_log_slope() -> float:
    """Bound of the log-slopes of `"bounded"`, either way."""
    return math.log(1e3)


def softplus_of_one(min_slope: float) -> float:
    """The parameter of softplus with which a slope is 1."""
    return math.log(math.expm1(1 - min_slope))


@dataclass(frozen=True)
class Form:
    """Turns the parameters of a spline into shares of its interval and slopes at its knots.

    Args:
        num_bins: number of bins.
        ends: one of `ENDS`.
        slopes: `"bounded"` for a softly bounded exponential of the parameters, `"softplus"` for
            `min_slope` and the softplus of the parameters.
        min_width: share of the interval that each bin has at least, in width.
        min_height: the same in height.
        min_slope: the least slope of `"softplus"`.
        scale: factor of the logits of widths and heights.
        offset: number added to the parameters of `"softplus"`.
    """

    num_bins: int
    ends: str = "identity"
    slopes: str = "bounded"
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_slope: float = 1e-3
    scale: float = 1.0
    offset: float = 0.0

    @property
    def least(self) -> tuple[float, float]:
        """The least shares of a bin, in width and in height."""
        return self.min_width, self.min_height

    @property
    def factors(self) -> tuple[float, float]:
        """Factors of the softmax in widths and in heights, times the scale of the logits."""
        return (
            self.scale * (1 - self.num_bins * self.min_width),
            self.scale * (1 - self.num_bins * self.min_height),
        )

    def logits(self, params: Tensor) -> Tensor:
        """Logits of widths, then of heights, from parameters of shape (num_params, ...)."""
        logits = params[: 2 * self.num_bins]
        return logits if self.scale == 1 else logits * self.scale

    def all_slopes(self, slopes: Tensor) -> Tensor:
        """Parameters of the slopes at all knots from those that are free, along axis 0."""
        if self.ends == "free":
            return slopes
        if self.ends == "equal":
            return torch.cat((slopes, slopes[:1]))
        one = 0.0
        if self.slopes == "softplus":
            one = softplus_of_one(self.min_slope) - self.offset
        end = torch.full_like(slopes[:1], one)
        return torch.cat((end, slopes, end))

    def free_slopes(self, gradient: Tensor) -> Tensor:
        """The transpose of `all_slopes`, which gradients go through."""
        if self.ends == "free":
            return gradient
        if self.ends == "equal":
            return torch.cat((gradient[:1] + gradient[-1:], gradient[1:-1]))
        return gradient[1:-1]

    def slope(self, a: Tensor) -> Tensor:
        """Slopes from their parameters."""
        if self.slopes == "softplus":
            return self.min_slope + F.softplus(a + self.offset if self.offset else a)
        return (a / (1 + a.abs() / _max_log_slope())).exp()

    def log_slope_rate(self, a: Tensor, slope: Tensor) -> Tensor:
        """The derivative of the log-slope by its parameter."""
        if self.slopes == "softplus":
            return torch.sigmoid(a + self.offset if self.offset else a) / slope
        return 1 / (1 + a.abs() / _max_log_slope()).square()
