"""What holds for all univariate bijections."""

import itertools
import math

import fuzz
import pytest
import torch
from conftest import UNIVARIATES
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from univariates import DIRECTIONS, draw

import mixer_bijectors as mb

AFFINE = ("additive", "affine", "sigmoid")
SPLINES = {name: u for name, u in UNIVARIATES.items() if name not in AFFINE}


@pytest.mark.parametrize("univariate", UNIVARIATES.values(), ids=UNIVARIATES.keys())
class TestUnivariate:
    @given(x=st.floats(-10, 10), data=st.data())
    def test_round_trip_and_derivative(self, univariate, x, data):
        size = univariate.num_params
        params = data.draw(st.lists(st.floats(-5, 5), min_size=size, max_size=size))
        params = torch.tensor([params], dtype=torch.float64)
        x = torch.tensor([x], dtype=torch.float64, requires_grad=True)
        y, log_derivative = univariate(x, params)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert_close(log_derivative, slope.log())
        back, log_derivative_back = univariate(y, params, inverse=True)
        assert_close(back, x, atol=1e-7, rtol=1e-7)
        assert_close(log_derivative_back, -log_derivative, atol=1e-5, rtol=1e-5)

    @DIRECTIONS
    @pytest.mark.parametrize("shape", [(3,), (1,), ()], ids=["each", "shared", "one"])
    def test_pulls_back_as_autograd_does(self, univariate, inverse, shape):
        x, _ = draw(univariate)
        params = torch.randn(*shape, univariate.num_params).double().requires_grad_()
        x.requires_grad_()
        y, log_derivative = univariate(x, params, inverse)
        grads = torch.randn_like(y), torch.randn_like(y)
        pairs = [(y, grads[0]), (log_derivative, grads[1])]
        results, given = zip(*[pair for pair in pairs if pair[0].requires_grad])
        wanted = torch.autograd.grad(results, (x, params), given)
        got = univariate.pull_back(y.detach(), params.detach(), inverse, *grads)
        # An input beside a knot may be found in either of two bins.
        assert_close(got, (x.detach(), *wanted), rtol=1e-6, atol=1e-6)

    @DIRECTIONS
    def test_zero_parameters_are_the_identity(self, univariate, inverse):
        x = torch.randn(50, 4, dtype=torch.float64)
        params = torch.zeros(50, 4, univariate.num_params, dtype=torch.float64)
        y, log_derivative = univariate(x, params, inverse)
        assert_close(y, x, atol=1e-14, rtol=0)
        assert_close(log_derivative, torch.zeros_like(x), atol=1e-14, rtol=0)

    @DIRECTIONS
    def test_gradients_of_first_and_second_order(self, univariate, inverse):
        x, params = draw(univariate, batch=4)
        x.requires_grad_()
        params.requires_grad_()
        assert torch.autograd.gradcheck(lambda *a: univariate(*a, inverse), (x, params))
        assert torch.autograd.gradgradcheck(lambda *a: univariate(*a, inverse), (x, params))

    @DIRECTIONS
    def test_transforms_of_torch_func(self, univariate, inverse):
        x, params = draw(univariate, batch=4)

        def total(x, params):
            y, log_derivative = univariate(x, params, inverse)
            return (y + log_derivative).sum()

        gradients = torch.func.grad(total, argnums=(0, 1))
        mapped = torch.func.vmap(gradients)(x, params)
        assert_close(mapped, gradients(x, params))

    @DIRECTIONS
    @pytest.mark.parametrize("argument", [0, 1])
    def test_derivatives_in_forward_mode(self, univariate, inverse, argument):
        arguments = draw(univariate, batch=2)

        def both(*arguments):
            return torch.stack(univariate(*arguments, inverse))

        modes = [
            mode(both, argument)(*arguments) for mode in (torch.func.jacrev, torch.func.jacfwd)
        ]
        assert_close(*modes)
        if univariate.num_params < 8 or not argument:  # larger Hessians take long
            hessians = [
                outer(inner(both, argument), argument)(*arguments)
                for outer in (torch.func.jacrev, torch.func.jacfwd)
                for inner in (torch.func.jacrev, torch.func.jacfwd)
            ]
            for hessian in hessians[1:]:
                assert_close(hessian, hessians[0])

    @DIRECTIONS
    def test_parameters_broadcast(self, univariate, inverse):
        x, params = draw(univariate)
        shared = params[0].requires_grad_()
        full = shared.expand_as(params)
        want, got = (univariate(x, p, inverse) for p in (full, shared))
        assert_close(got, want)
        gradients = [torch.autograd.grad(sum(t.sum() for t in o), shared) for o in (want, got)]
        assert_close(*gradients)

    @DIRECTIONS
    def test_float32_agrees_with_float64(self, univariate, inverse):
        x, params = draw(univariate)
        want = univariate(x, params, inverse)
        got = univariate(x.float(), params.float(), inverse)
        assert_close([t.double() for t in got], list(want), atol=1e-4, rtol=1e-4)

    def test_half_precision_keeps_log_derivatives_in_float32(self, univariate):
        x, params = (t.bfloat16() for t in draw(univariate))
        y, log_derivative = univariate(x, params)
        assert (y.dtype, log_derivative.dtype) == (torch.bfloat16, torch.float32)

    @DIRECTIONS
    def test_any_leading_shape(self, univariate, inverse):
        for shape in ((), (0,), (2, 1, 3)):
            x, params = torch.randn(shape), torch.randn(*shape, univariate.num_params)
            y, log_derivative = univariate(x, params, inverse)
            assert y.shape == log_derivative.shape == shape

    @DIRECTIONS
    @pytest.mark.parametrize("scale", [1.0, 1e3, 1e30])
    def test_extreme_parameters_stay_finite(self, univariate, scale, inverse):
        if getattr(univariate, "slopes", "bounded") == "softplus":
            pytest.skip("slopes by softplus have no upper bound")
        x, params = (
            t.requires_grad_() for t in draw(univariate, scale, 1000, dtype=torch.float32)
        )
        y, log_derivative = univariate(x, params, inverse)
        gradients = torch.autograd.grad(y.sum() + log_derivative.sum(), (x, params))
        assert all(t.isfinite().all() for t in (y, log_derivative, *gradients))

    @DIRECTIONS
    def test_nan_stays_where_it_is(self, univariate, inverse):
        x, params = draw(univariate)
        x[3, 1] = torch.nan
        y, _ = univariate(x, params, inverse)
        assert torch.equal(y.isnan(), x.isnan())


def test_nothing_breaks_any_univariate():
    """A sample of what benchmarks/fuzz.py tries ten thousand times."""
    outcomes = fuzz.run_trials(fuzz.UNIVARIATES, trials=140, seed=1)
    assert [failure for failure in itertools.chain(*outcomes.values()) if failure] == []


@DIRECTIONS
@pytest.mark.parametrize("name", SPLINES)
def test_inputs_that_all_lie_in_the_tails_or_at_the_ends(name, inverse):
    univariate = SPLINES[name]
    params = torch.randn(6, univariate.num_params)
    x = torch.tensor([-3.0, 3.0, -7.0, 7.0, -1e30, 1e30])
    y, log_derivative = univariate(x, params, inverse)
    assert log_derivative.isfinite().all()
    if not getattr(univariate, "circular", False):
        assert torch.equal(y, x)
        assert not log_derivative.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mb.RationalQuadratic(1),
            "num_bins must be a whole number from 2 to 500, got 1",
        ),
        (lambda: mb.RationalQuadratic(8.0), "num_bins must be a whole number from 2 to 500"),
        (lambda: mb.RationalQuadratic(bound=0.0), "bound must be positive and finite, got 0.0"),
        (
            lambda: mb.RationalQuadratic(slopes="free"),
            "slopes must be one of bounded, softplus, got 'free'",
        ),
        (lambda: mb.MonotoneBSpline(3), "grid_size must be a whole number from 4 to 500"),
        (lambda: mb.MonotoneBSpline(bound=math.inf), "bound must be positive and finite"),
        (lambda: mb.Affine(0.0), "Affine: max_log_scale must be positive, got 0.0"),
    ],
)
def test_impossible_splines_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mb.RationalQuadratic(circular=[False, True]),
            "circular must be True or False for all features, got a list",
        ),
        (
            lambda: mb.RationalQuadratic(bound=torch.tensor([1.0, 2.0])),
            "RationalQuadratic: bound must be one number for all features, got a Tensor",
        ),
        (
            lambda: mb.MonotoneBSpline(bound=[1.0, 2.0]),
            "MonotoneBSpline: bound must be one number for all features, got a list",
        ),
        (
            lambda: mb.Affine(max_log_scale=torch.ones(2)),
            "Affine: max_log_scale must be one number for all features, got a Tensor",
        ),
    ],
)
def test_settings_for_each_feature_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
@pytest.mark.parametrize("name", ["spline", "bspline"])
def test_two_couplings_compile_once_for_all_batch_sizes(name, dynamic):
    """With gradients; an automatic compiler makes a second graph when a size changes."""
    chain = mb.Chain(
        mb.Coupling(6, UNIVARIATES[name], hidden_features=8, reverse=reverse)
        for reverse in (False, True)
    )
    for parameter in chain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(chain.inverse, fullgraph=True, dynamic=dynamic, backend=graphs)
    for batch in (4, 7, 12):
        x = torch.randn(batch, 6, requires_grad=True)
        z, log_det = compiled(x)
        assert_close((z, log_det), chain.inverse(x))
        (z.sum() + log_det.sum()).backward()
    assert graphs.frame_count == (1 if dynamic else 2)


@pytest.mark.slow
def test_one_compiled_spline_serves_a_model():
    """Several shapes, both directions, with gradients and without, within the limit of 8."""
    spline = mb.RationalQuadratic(num_bins=4)
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(
        lambda *arguments: spline(*arguments), fullgraph=True, dynamic=True, backend=graphs
    )
    for shape in ((4, 3), (64, 12), (2, 3, 8, 8), (5, 12, 4, 4)):
        for inverse in (False, True):
            for gradients in (False, True):
                x, params = torch.randn(shape), torch.randn(*shape, spline.num_params)
                with torch.set_grad_enabled(gradients):
                    got = compiled(x, params.requires_grad_(gradients), inverse)
                assert_close(got, spline(x, params, inverse))
    assert graphs.frame_count <= 8


@pytest.mark.parametrize(
    ("error", "x", "params", "message"),
    [
        (ValueError, (5,), (5, 22), r"expected params of shape \(..., 23\) that broadcasts"),
        (ValueError, (5,), (4, 23), r"against x of shape \(5,\), got \(4, 23\)"),
        (ValueError, (5,), (2, 5, 23), r"got \(2, 5, 23\)"),
        (ValueError, (1,), (5, 23), r"got \(5, 23\)"),
        (ValueError, (5,), (), r"got \(\)"),
        (TypeError, (5, torch.long), (5, 23), "x to be floating point, got torch.int64"),
        (TypeError, (5,), (5, 23, torch.long), "params to be floating point, got torch.int64"),
    ],
)
def test_wrong_arguments_are_one_sentence(error, x, params, message):
    def zeros(*sizes):
        *shape, dtype = sizes if sizes and sizes[-1] is torch.long else (*sizes, torch.float32)
        return torch.zeros(shape, dtype=dtype)

    with pytest.raises(error, match=f"RationalQuadratic: .*{message}"):
        mb.RationalQuadratic()(zeros(*x), zeros(*params))


def test_another_map_does_not_pull_back_as_its_base_class_does():
    class Doubled(mb.Affine):
        def transform(self, x, params, inverse):
            y, log_derivative = super().transform(x / 2 if inverse else x, params, inverse)
            return y if inverse else 2 * y, log_derivative + (-1 if inverse else 1) * math.log(
                2
            )

    x, params = draw(Doubled())
    y, _ = Doubled()(x, params)
    back, _, _ = Doubled().pull_back(y, params, False, torch.ones_like(y), torch.ones_like(y))
    assert_close(back, x)
