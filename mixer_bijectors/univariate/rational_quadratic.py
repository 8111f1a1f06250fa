"""Monotone rational-quadratic splines."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Univariate, check_bound, check_count
from .rational_quadratic_form import SLOPES, Form, softplus_of_one
from .rational_quadratic_kernel import pull_back_unit_spline, unit_spline

__all__ = ["RationalQuadratic", "evaluate"]


@dataclass(frozen=True)
class RationalQuadratic(Univariate):
    r"""Monotone rational-quadratic spline with linear tails, closed form in both directions.

    On [-b, b] the spline passes through `num_bins + 1` knots with slopes :math:`\delta_k`;
    between two knots, with :math:`s` the slope of their chord and :math:`t` in [0, 1] the
    position,

    .. math:: y = y_k + h \, \frac{t \, (s t + \delta_k (1 - t))}
        {s \, (t^2 + (1 - t)^2) + (\delta_k + \delta_{k + 1}) \, t (1 - t)}

    and it is the identity outside. The parameters of one bijection are logits of the widths and
    of the heights of the bins, which softmax turns into shares of the interval of at least
    1e-3, and log-slopes at the inner knots, softly bounded to 1e-3 to 1e3.

    With `slopes="softplus"`, a slope is 1e-3 plus the softplus of its parameter and of
    log(exp(1 - 1e-3) - 1), which makes it 1 where the parameter is 0. These are the splines of
    normflows and nflows. To take over their trained parameters, subtract that number from those
    of slopes; where a net has `hidden_features`, they divide those of widths and heights by the
    root of it. These slopes have no upper bound, so that what follows holds for parameters of
    moderate size.

    The discriminant that inverts the spline is a sum of squares, and denominators stay above
    half the slope of the chord, so values are finite for all parameters. Gradients are in
    closed form, in reverse and in forward mode, and can be differentiated again.

    Args:
        num_bins: number of bins K; there are 3 K - 1 parameters, 3 K when circular.
        bound: the interval is [-bound, bound].
        circular: for angles of period 2 * bound. The slopes at both ends are equal and free,
            and the bijection is continued periodically, f(x + 2 b) = f(x) + 2 b.
        slopes: `"bounded"` or `"softplus"`, what the parameters of slopes stand for.

    Shapes: x (...), params (..., num_params), y and log|dy/dx| (...).

    Raises:
        TypeError: a bound or `circular` for each feature instead of one for all.
        ValueError: fewer than 2 bins or more than 500; a bound that is not positive and finite;
            slopes of another kind.

    References:
        Durkan et al., Neural spline flows, 2019 (https://arxiv.org/abs/1906.04032)

        Rezende et al., Normalizing flows on tori and spheres, 2020
        (https://arxiv.org/abs/2002.02428)

    Example:
        >>> spline = RationalQuadratic(num_bins=4)
        >>> x, params = torch.randn(5, dtype=torch.float64), torch.randn(5, 11).double()
        >>> y, log_derivative = spline(x, params)
        >>> bool((spline(y, params, inverse=True)[0] - x).abs().max() < 1e-12)
        True
    """

    num_bins: int = 8
    bound: float = 3.0
    circular: bool = False
    slopes: str = "bounded"

    def __post_init__(self) -> None:
        check_count("RationalQuadratic", "num_bins", self.num_bins, least=2)
        check_bound("RationalQuadratic", self.bound)
        if not isinstance(self.circular, bool | np.bool_):
            raise TypeError(
                "RationalQuadratic: circular must be True or False for all features, got a "
                f"{type(self.circular).__name__}; give angles and other features a layer each"
            )
        if self.slopes not in SLOPES:
            raise ValueError(
                f"RationalQuadratic: slopes must be one of {', '.join(SLOPES)}, got "
                f"{self.slopes!r}"
            )

    @property
    def num_params(self) -> int:
        """Number of parameters of one bijection."""
        return 3 * self.num_bins - (not self.circular)

    @property
    def form(self) -> Form:
        """The form that turns the parameters into shares and slopes."""
        return Form(
            self.num_bins,
            ends="equal" if self.circular else "identity",
            slopes=self.slopes,
            offset=softplus_of_one(Form.min_slope) if self.slopes == "softplus" else 0.0,
        )

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        params = params[(None,) * (x.dim() + 1 - params.dim())]
        u = x / (2 * self.bound)
        if self.circular:
            turns = (u.detach() + 0.5).floor()
            v, log_slope = unit_spline(u - turns, params, self.form, inverse)
            return (v + turns) * (2 * self.bound), log_slope
        inside = x.abs() < self.bound
        # Inputs outside are replaced by 0, whose gradients are finite, and are discarded.
        v, log_slope = unit_spline(torch.where(inside, u, 0.0), params, self.form, inverse)
        y = v * (2 * self.bound)
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def pull_back(
        self, y: Tensor, params: Tensor, inverse: bool, grad_y: Tensor, grad_log: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `x` that leads to `y`, and gradients there, from one search for the bins."""
        size, wide = 2 * self.bound, torch.promote_types(y.dtype, torch.float32)
        given = params.to(wide)[(None,) * (y.dim() + 1 - params.dim())]
        v = y.to(wide) / size
        if self.circular:
            turns = (v + 0.5).floor()
            u, grad_x, grad = pull_back_unit_spline(
                v - turns, given, self.form, inverse, grad_y * size, grad_log
            )
            x, grad_x = (u + turns) * size, grad_x / size
        else:
            inside = y.abs() < self.bound
            v, grad_v, grad_log = (
                torch.where(inside, t, 0.0) for t in (v, grad_y * size, grad_log)
            )
            u, grad_x, grad = pull_back_unit_spline(
                v, given, self.form, inverse, grad_v, grad_log
            )
            x = torch.where(inside, u * size, y)
            grad_x = torch.where(inside, grad_x / size, grad_y)
        return x.to(y.dtype), grad_x.to(y.dtype), grad.view_as(params).to(params.dtype)

    def knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The knots :math:`x_k, y_k` and the slopes there, each (..., num_bins + 1)."""
        form, params = self.form, params.movedim(-1, 0)
        x, y = map(self._corners, form.logits(params).split(self.num_bins), form.least)
        slopes = form.slope(form.all_slopes(params[2 * self.num_bins :]))
        return x, y, slopes.movedim(0, -1)

    def _corners(self, logits: Tensor, least: float) -> Tensor:
        shares = least + (1 - self.num_bins * least) * logits.softmax(0)
        knots = F.pad(shares.movedim(0, -1).cumsum(-1), (1, 0))
        return 2 * self.bound * (knots - 0.5)


def evaluate(spline: RationalQuadratic, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Values and log-slopes of a spline inside its interval, by the formula, step by step.

    It is the reference that the kernel is tested against, and several times as slow.

    Args:
        spline: the spline.
        x: positions from -bound to bound, of shape (...).
        params: parameters of shape (..., num_params).

    Example:
        >>> spline = RationalQuadratic(num_bins=4)
        >>> x, params = torch.rand(5), torch.randn(5, 11)
        >>> torch.allclose(evaluate(spline, x, params)[0], spline(x, params)[0], atol=1e-5)
        True
    """
    knots_x, knots_y, slopes = spline.knots(params)
    k = (x.unsqueeze(-1) >= knots_x[..., 1:-1]).sum(-1, keepdim=True)

    def at(table: Tensor, index: Tensor) -> Tensor:
        return table.gather(-1, index).squeeze(-1)

    x0, x1, y0, y1 = at(knots_x, k), at(knots_x, k + 1), at(knots_y, k), at(knots_y, k + 1)
    d0, d1 = at(slopes, k), at(slopes, k + 1)
    w, h = x1 - x0, y1 - y0
    s, t = h / w, (x - x0) / w
    denominator = s * (t**2 + (1 - t) ** 2) + (d0 + d1) * t * (1 - t)
    y = y0 + h * t * (s * t + d0 * (1 - t)) / denominator
    numerator = d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2
    return y, (s**2 * numerator / denominator**2).log()
