"""Monotone cubic B-splines, the invertible edge of a Kolmogorov-Arnold network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Univariate, check_bound, check_count

__all__ = ["MonotoneBSpline"]

# Bracketed Halley steps from the chord reach the precision of float64 within five steps, for
# all slopes that the spline can have; the sixth is a reserve. The two Newton steps after them
# give the gradient.
_HALLEY_STEPS = 6
_MIN_SHARE = 1e-3


@dataclass(frozen=True)
class MonotoneBSpline(Univariate):
    r"""Cubic B-spline with increasing coefficients, twice continuously differentiable.

    .. math:: y = \sum_i c_i \, B_3\!\left(\frac{x + b}{\Delta} - i\right), \qquad
        \Delta = \frac{2 b}{\mathrm{grid\_size}}

    on a uniform grid over [-b, b], and the identity outside. Increasing coefficients make the
    spline increasing. The three coefficients that reach each end are those of the identity, so
    that value, slope and curvature agree with it there; a softmax of the parameters divides the
    rest. The slope stays between `1e-3 * num_params` and `num_params`. The inverse
    takes a fixed number of steps; gradients through it are those of the implicit function.

    Args:
        grid_size: number of grid cells, at least 4; `grid_size - 2` parameters.
        bound: the interval is [-bound, bound].

    Shapes: x (...), params (..., grid_size - 2), y and log|dy/dx| (...).

    Raises:
        ValueError: fewer than 4 cells or more than 500; a bound not positive and finite.

    References:
        Liu et al., KAN: Kolmogorov-Arnold networks, 2024 (https://arxiv.org/abs/2404.19756)

    Example:
        >>> spline = MonotoneBSpline()
        >>> x, params = torch.randn(5, dtype=torch.float64), torch.randn(5, 6).double()
        >>> y, log_derivative = spline(x, params)
        >>> bool((spline(y, params, inverse=True)[0] - x).abs().max() < 1e-12)
        True
    """

    grid_size: int = 8
    bound: float = 3.0

    def __post_init__(self) -> None:
        check_count("MonotoneBSpline", "grid_size", self.grid_size, least=4)
        check_bound("MonotoneBSpline", self.bound)

    @property
    def num_params(self) -> int:
        """Number of parameters of one bijection."""
        return self.grid_size - 2

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map `x`, or map it back."""
        steps, nodes = self._steps_and_nodes(params)
        scale = 2 * self.bound / self.grid_size
        inside = x.abs() < self.bound
        # In grid cells from the middle of the grid. Inputs outside are replaced by 0, whose
        # gradients are finite, and the last lines discard the results.
        u = torch.where(inside, x / scale, 0.0)
        if inverse:
            cell = (u.unsqueeze(-1) >= nodes[..., 1:]).sum(-1)
        else:
            cell = (u.detach() + self.grid_size / 2).long().clamp(0, self.grid_size - 1)
        s0, s1, s2 = (_take(steps, cell + offset) for offset in range(3))
        node = _take(nodes, cell)
        # The cubic of the cell, node + t (p + t (q + t r)) for t in [0, 1].
        p, q, r = (s0 + s1) / 2, (s1 - s0) / 2, (s0 - 2 * s1 + s2) / 6
        start = cell - self.grid_size / 2
        if inverse:
            t = _solve(u - node, p, q, r)
            y = (start + t) * scale
        else:
            t = u - start
            y = (node + t * (p + t * (q + t * r))) * scale
        # A mean of positive slopes, hence never rounded to zero or below.
        back = 1 - t
        slope = s0 * (back * back / 2) + s1 * (0.5 + t * back) + s2 * (t * t / 2)
        log_slope = -slope.log() if inverse else slope.log()
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def _steps_and_nodes(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Differences between coefficients, grid_size + 2, and values at grid_size nodes."""
        n = self.num_params
        # Two steps at either end are those of the identity.
        ends = params.new_ones(*params.shape[:-1], 2)
        shares = params.softmax(-1)
        steps = torch.cat(
            (ends, n * (_MIN_SHARE + (1 - n * _MIN_SHARE) * shares), ends), dim=-1
        )
        # The identity at the first node, for both the coefficient and the spline.
        first = -self.grid_size / 2
        coefficients = first + steps[..., 1:-2].cumsum(-1)
        nodes = coefficients + (steps[..., 2:-1] - steps[..., 1:-2]) / 6
        return steps, torch.cat((torch.full_like(nodes[..., :1], first), nodes), dim=-1)


def _take(table: Tensor, index: Tensor) -> Tensor:
    """The entries `index`, of shape (...), of tables of shape (..., entries) that broadcast."""
    table = table.expand(*index.shape, table.shape[-1])
    return table.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _solve(rho: Tensor, p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """The root in [0, 1] of t (p + t (q + t r)) = rho, whose left side increases there."""
    with torch.no_grad():
        low, high = torch.zeros_like(rho), torch.ones_like(rho)
        t = (rho / (p + q + r)).clamp(0, 1)
        for _ in range(_HALLEY_STEPS):
            residual = t * (p + t * (q + t * r)) - rho
            slope = p + t * (2 * q + 3 * r * t)
            low = torch.where(residual <= 0, t, low)
            high = torch.where(residual >= 0, t, high)
            halley = t - 2 * residual * slope / (
                2 * slope * slope - residual * (2 * q + 6 * r * t)
            )
            t = torch.where((halley >= low) & (halley <= high), halley, (low + high) / 2)
    # One Newton step at the root has the right first derivatives, two have those up to third.
    for _ in range(2):
        t = t - (t * (p + t * (q + t * r)) - rho) / (p + t * (2 * q + 3 * r * t))
    return t
