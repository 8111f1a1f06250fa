"""Monotone B-splines against their definition."""

import pytest
import torch
from scipy.interpolate import BSpline
from torch.testing import assert_close
from univariates import PRECISIONS, draw

import mixer_bijectors as mb


@PRECISIONS
def test_monotone_bspline_is_the_bspline_of_scipy(dtype, scale, atol):
    spline = mb.MonotoneBSpline(grid_size=7, bound=2.0)
    cell = 4 / 7
    params = scale * torch.randn(5, dtype=dtype)
    increments = 5 * (1e-3 + (1 - 5e-3) * params.softmax(0))
    steps = torch.cat((torch.ones(2), increments, torch.ones(2))).double()
    coefficients = -2 + cell * (steps.cumsum(0) - 1)
    first = torch.tensor([-2 - cell], dtype=torch.float64)
    coefficients = torch.cat((first, coefficients)).numpy()
    knots = -2 + cell * torch.arange(-3, 11).double().numpy()
    reference = BSpline(knots, coefficients, 3)
    x = torch.linspace(-1.99, 1.99, 101, dtype=dtype)
    y, log_derivative = spline(x, params)
    want = torch.as_tensor(reference(x.double().numpy()))
    slope = torch.as_tensor(reference.derivative()(x.double().numpy()))
    assert_close(y.double(), want, atol=atol, rtol=atol)
    assert_close(log_derivative.double(), slope.log(), atol=10 * atol, rtol=10 * atol)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_monotone_bspline_inverts_exactly(dtype, tolerance, scale):
    """Up to rounding of the interval, which a flat piece magnifies on one of its axes."""
    spline = mb.MonotoneBSpline()
    y, params = draw(spline, scale, 20_000, dtype)
    x, _ = spline(y, params, inverse=True)
    again, log_derivative = spline(x, params)
    error = (again - y).abs() / log_derivative.exp().clamp(min=1)
    assert error.max() < tolerance


def test_monotone_bspline_is_twice_differentiable_everywhere():
    spline = mb.MonotoneBSpline(grid_size=6)
    params = 2 * torch.randn(4, dtype=torch.float64)
    knots = torch.linspace(-3, 3, 7, dtype=torch.float64)
    sides = []
    for offset in (-1e-9, 1e-9):
        x = (knots + offset).requires_grad_()
        y, _ = spline(x, params)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        sides.append(torch.stack((y.detach(), first.detach(), second)))
    assert_close(*sides, atol=1e-6, rtol=0)
