"""Rational-quadratic splines against their formula and peers."""

import math

import nflows.transforms.splines as nflows_splines
import normflows.utils.splines as normflows_splines
import pytest
import torch
import zuko
from torch.testing import assert_close
from univariates import DIRECTIONS, PRECISIONS, draw

import mixer_bijectors as mb
from mixer_bijectors.univariate.rational_quadratic import evaluate


@PRECISIONS
@DIRECTIONS
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    "reference",
    [
        normflows_splines.unconstrained_rational_quadratic_spline,
        nflows_splines.unconstrained_rational_quadratic_spline,
    ],
    ids=["normflows", "nflows"],
)
def test_rational_quadratic_agrees_with(reference, circular, inverse, dtype, scale, atol):
    if circular and reference.__module__.startswith("nflows"):
        pytest.skip("nflows has no circular splines")
    spline = mb.RationalQuadratic(num_bins=6, bound=2.0, circular=circular)
    x, params = draw(spline, scale, dtype=dtype)
    if circular:
        x = x.clamp(-2, 2)
    widths, heights, slopes = params.split([6, 6, spline.num_params - 12], dim=-1)
    # Their slopes are 1e-3 + softplus of a parameter.
    slopes = (slopes / (1 + slopes.abs() / math.log(1e3))).exp()
    slopes = (slopes - 1e-3).expm1().log()
    tails = "circular" if circular else "linear"
    want = reference(x, widths, heights, slopes, inverse=inverse, tails=tails, tail_bound=2.0)
    assert_close(spline(x, params, inverse), want, atol=atol, rtol=atol)


@DIRECTIONS
@pytest.mark.parametrize("circular", [False, True])
def test_rational_quadratic_has_the_values_and_gradients_of_its_formula(circular, inverse):
    spline = mb.RationalQuadratic(num_bins=5, bound=2.0, circular=circular)
    x, params = draw(spline, 2.0)
    x = x.clamp(-1.99, 1.99)
    weights = torch.randn(2, *x.shape, dtype=x.dtype)

    def gradients(values, *inputs):
        total = sum((weight * value).sum() for weight, value in zip(weights, values))
        return torch.autograd.grad(total, inputs)

    if inverse:
        # Where y = f(x), so that both directions are compared at the points of the formula.
        x = spline(x, params)[0]
        x.requires_grad_(), params.requires_grad_()
        got = spline(x, params, inverse=True)
        start = got[0].detach().requires_grad_()
        y = evaluate(spline, start, params)[0]
        assert_close(y, x)
        # By the implicit function: dx = (dy - df) / slope.
        slope = torch.autograd.grad(y.sum(), start, retain_graph=True)[0]
        position = start.detach() + (x - y) / slope.detach()
        want = (position, -evaluate(spline, position, params)[1])
    else:
        x.requires_grad_(), params.requires_grad_()
        got, want = spline(x, params), evaluate(spline, x, params)
    assert_close(got, want)
    assert_close(gradients(got, x, params), gradients(want, x, params))


@PRECISIONS
@DIRECTIONS
def test_rational_quadratic_agrees_with_zuko(inverse, dtype, scale, atol):
    spline = mb.RationalQuadratic(num_bins=6, bound=2.0)
    x, params = draw(spline, scale / 2, dtype=dtype)
    *logits, slopes = params.split([6, 6, 5], dim=-1)
    # Their shares have no floor, and their logits a soft bound.
    shares = [(1e-3 + (1 - 6e-3) * t.softmax(-1)).log() for t in logits]
    shares = [t - t.mean(-1, keepdim=True) for t in shares]
    widths, heights = (t / (1 - 2 * t.abs() / math.log(1e3)) for t in shares)
    reference = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, bound=2.0)
    y, log_derivative = spline(x, params, inverse)
    want = reference.inv(x) if inverse else reference(x)
    assert_close(y, want, atol=atol, rtol=atol)
    if inverse:
        want = -reference.log_abs_det_jacobian(want, x)
    else:
        want = reference.log_abs_det_jacobian(x, want)
    assert_close(log_derivative, want, atol=atol, rtol=atol)


@DIRECTIONS
@pytest.mark.parametrize("circular", [False, True])
def test_trained_parameters_of_normflows_and_nflows_carry_over(circular, inverse):
    spline = mb.RationalQuadratic(5, 2.0, circular, slopes="softplus")
    x, params = draw(spline)
    x = x.clamp(-2, 2) if circular else x
    widths, heights, slopes = params.split([5, 5, spline.num_params - 10], dim=-1)
    tails = "circular" if circular else "linear"
    libraries = [normflows_splines] if circular else [normflows_splines, nflows_splines]
    for library in libraries:
        want = library.unconstrained_rational_quadratic_spline(
            x, widths, heights, slopes, inverse=inverse, tails=tails, tail_bound=2.0
        )
        shifted = torch.cat((widths, heights, slopes - math.log(math.expm1(1 - 1e-3))), dim=-1)
        assert_close(spline(x, shifted, inverse), want, atol=1e-11, rtol=1e-11)


def test_circular_splines_go_on_periodically():
    spline = mb.RationalQuadratic(circular=True, bound=math.pi)
    x, params = draw(spline)
    y, log_derivative = spline(x, params)
    shifted, log_derivative_shifted = spline(x + 2 * math.pi, params)
    assert_close(shifted, y + 2 * math.pi)
    assert_close(log_derivative_shifted, log_derivative)
    ends = torch.full((200, 3), math.pi, dtype=torch.float64)
    slopes = [spline(sign * (1 - 1e-13) * ends, params)[1] for sign in (-1, 1)]
    assert_close(*slopes, atol=1e-8, rtol=0)
