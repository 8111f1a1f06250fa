"""Parallel inversion against the sequential solve of the layer itself."""

import copy
import pickle
from functools import partial

import nflows.distributions
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.running import incremental_made
from mixer_bijectors.running.incremental_made import supports
from mixer_bijectors.solvers.fixed_point import solve

# Layers of 12 features, hidden 32, with context if asked: the sequential direction of each.
LAYERS = {
    "normflows-maf": ("inverse", lambda c: nf.flows.MaskedAffineAutoregressive(12, 32, c)),
    "normflows-spline": (
        "forward",
        lambda c: nf.flows.AutoregressiveRationalQuadraticSpline(12, 1, 32, c),
    ),
    "normflows-permuted": (
        "forward",
        lambda c: nf.flows.AutoregressiveRationalQuadraticSpline(
            12, 1, 32, c, permute_mask=True
        ),
    ),
    "normflows-circular": (
        "forward",
        lambda c: nf.flows.CircularAutoregressiveRationalQuadraticSpline(
            12, 1, 32, [0, 3, 4], c
        ),
    ),
    "nflows-maf": ("inverse", lambda c: nt.MaskedAffineAutoregressiveTransform(12, 32, c)),
    "nflows-spline": (
        "inverse",
        lambda c: nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            12, 32, c, tails="linear", tail_bound=3.0
        ),
    ),
    "nflows-quadratic": (
        "inverse",
        lambda c: nt.MaskedPiecewiseQuadraticAutoregressiveTransform(
            12, 32, c, tails="linear", tail_bound=3.0
        ),
    ),
    "ours-affine": (
        "forward",
        lambda c: mb.Autoregressive(12, hidden_features=32, context_features=c or 0),
    ),
    "ours-spline-reverse": (
        "forward",
        lambda c: mb.Autoregressive(
            12,
            mb.RationalQuadratic(),
            hidden_features=32,
            context_features=c or 0,
            reverse=True,
        ),
    ),
}
CONTEXT = pytest.mark.parametrize("context_features", [None, 3])
EXACT = pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)]
)


def randomised(layer, std=0.2):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return layer.eval()


def run(layer, direction, x, context=None):
    return (layer if direction == "forward" else layer.inverse)(x, context)


@pytest.fixture(params=LAYERS, ids=str)
def case(request):
    return LAYERS[request.param]


@CONTEXT
class TestEveryLayer:
    @EXACT
    def test_equals_the_sequential_solve(self, case, context_features, dtype, atol):
        _, make = case
        layer = randomised(make(context_features)).to(dtype)
        fast = mb.accelerate_sampling(layer)
        y = torch.randn(20, 12, dtype=dtype)
        context = context_features and torch.randn(20, context_features, dtype=dtype)
        for way in ("forward", "inverse"):
            want, got = (run(flow, way, y, context) for flow in (layer, fast))
            assert_close(got, want, atol=atol, rtol=atol)
        assert 1 < fast.last_iterations <= 12

    def test_gradients_equal_those_of_the_sequential_solve(self, case, context_features):
        direction, make = case
        layer = randomised(make(context_features)).double()
        y = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
        inputs = [y, *layer.parameters()]
        context = None
        if context_features:
            context = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
            inputs.append(context)
        weights = torch.randn(6, 12, dtype=torch.float64)
        gradients = []
        for flow in (layer, mb.accelerate_sampling(layer)):
            x, log_det = run(flow, direction, y, context)
            total = (weights * x.sin()).sum() + (weights[:, 0] * log_det).sum()
            gradients.append(torch.autograd.grad(total, inputs))
        assert_close(gradients[1], gradients[0], atol=1e-9, rtol=1e-9)

    def test_runs_without_a_look_at_values(self, case, context_features):
        direction, make = case
        layer = make(context_features).to("meta")
        y = torch.randn(5, 12, device="meta")
        context = context_features and torch.randn(5, context_features, device="meta")
        if "nflows" in type(layer).__module__ or hasattr(layer, "mprqat"):
            pytest.skip("its splines look at values")
        x, log_det = run(mb.accelerate_sampling(layer, max_iter=4), direction, y, context)
        assert (x.shape, log_det.shape, x.device.type) == ((5, 12), (5,), "meta")


def test_state_is_that_of_the_layer(case):
    direction, make = case
    plain, other = randomised(make(None)), randomised(make(None))
    fast = mb.accelerate_sampling(other)
    assert list(fast.state_dict()) == list(plain.state_dict())
    y = torch.randn(5, 12)
    want = run(plain, direction, y)
    fast.load_state_dict(plain.state_dict())
    for flow in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert_close(run(flow, direction, y), want, atol=2e-5, rtol=2e-5)
    make(None).load_state_dict(fast.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        fast.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*another"):
        fast.load_state_dict({**plain.state_dict(), "another": torch.zeros(1)})


@EXACT
@pytest.mark.parametrize("max_iter", [1, 3])
def test_samples_left_over_are_solved_in_order(case, dtype, atol, max_iter):
    direction, make = case
    layer = randomised(make(None)).to(dtype)
    y = torch.randn(9, 12, dtype=dtype)
    fast = mb.accelerate_sampling(layer, max_iter=max_iter)
    assert_close(run(fast, direction, y), run(layer, direction, y), atol=atol, rtol=atol)
    assert fast.last_iterations == max_iter


# More layers, without context, that are solved degree by degree.
INCREMENTAL = {
    "one feature": lambda: nf.flows.MaskedAffineAutoregressive(1, 8),
    "two features": lambda: nt.MaskedAffineAutoregressiveTransform(2, 8),
    "several blocks of degrees": lambda: nt.MaskedAffineAutoregressiveTransform(37, 40),
    "fewer units than features": lambda: nf.flows.MaskedAffineAutoregressive(20, 7),
    "no blocks": lambda: nf.flows.MaskedAffineAutoregressive(12, 32, num_blocks=0),
    **{
        f"{layer.__module__.split('.')[0]} {' '.join(options)}": partial(
            layer, 12, 32, **options
        )
        for layer in (
            nf.flows.MaskedAffineAutoregressive,
            nt.MaskedAffineAutoregressiveTransform,
        )
        for options in (
            {"use_residual_blocks": False},
            {"use_residual_blocks": False, "random_mask": True},
            {"use_residual_blocks": False, "random_mask": True, "use_batch_norm": True},
            {"use_batch_norm": True, "dropout_probability": 0.5},
            {"activation": nn.Tanh()},
        )
    },
    "units of random degrees, fewer than features": lambda: (
        nt.MaskedAffineAutoregressiveTransform(
            20, 7, use_residual_blocks=False, random_mask=True, use_batch_norm=True
        )
    ),
    "reverse": lambda: mb.Autoregressive(12, hidden_features=16, reverse=True),
    "linear spline": lambda: nt.MaskedPiecewiseLinearAutoregressiveTransform(4, 12, 32),
    "quadratic spline": lambda: nt.MaskedPiecewiseQuadraticAutoregressiveTransform(12, 32),
    "cubic spline": lambda: nt.MaskedPiecewiseCubicAutoregressiveTransform(4, 12, 32),
    "rational spline": lambda: nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        12, 32
    ),
}


@pytest.fixture
def incrementally(monkeypatch):
    """Batches of any size one feature after the other."""
    monkeypatch.setattr(incremental_made, "_MIN_PRODUCTS", 0)


@pytest.mark.usefixtures("incrementally")
class TestIncremental:
    exact = pytest.mark.parametrize(
        ("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-11)]
    )

    @exact
    @CONTEXT
    @pytest.mark.parametrize("name", [name for name in LAYERS if "circular" not in name])
    def test_equals_the_sequential_solve(self, name, context_features, dtype, tol):
        direction, make = LAYERS[name]
        layer = randomised(make(context_features), std=0.1).to(dtype)
        y = torch.randn(20, 12, dtype=dtype)
        context = context_features and torch.randn(20, context_features, dtype=dtype)
        fast = mb.accelerate_sampling(layer)
        got, want = (run(flow, direction, y, context) for flow in (fast, layer))
        assert_close(got, want, atol=tol, rtol=tol)
        assert fast.last_iterations == 1

    @exact
    @pytest.mark.parametrize("name", INCREMENTAL)
    def test_every_net(self, name, dtype, tol):
        layer = randomised(INCREMENTAL[name](), std=0.15).to(dtype)
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        direction = "forward" if isinstance(layer, mb.Autoregressive) else "inverse"
        features = next(layer.parameters()).shape[1]
        y = torch.rand(20, features, dtype=dtype)  # where splines without tails are defined
        fast = mb.accelerate_sampling(layer)
        got, want = (run(flow, direction, y) for flow in (fast, layer))
        assert_close(got, want, atol=tol, rtol=tol)
        assert fast.last_iterations == 1

    @pytest.mark.parametrize(
        "make",
        [
            lambda: mb.Autoregressive(12, hidden_features=32),
            lambda: nf.flows.MaskedAffineAutoregressive(12, 32),
            lambda: nt.MaskedAffineAutoregressiveTransform(12, 32),
        ],
    )
    def test_what_is_not_finite_stays_in_its_sample(self, make):
        layer = randomised(make())
        fast = mb.accelerate_sampling(layer)
        direction = "forward" if isinstance(layer, mb.Autoregressive) else "inverse"
        y = torch.randn(6, 12)
        want, want_log_det = run(layer, direction, y)
        y[1, 5], y[3, 0], y[4, 7] = torch.nan, torch.inf, 1e30
        x, log_det = run(fast, direction, y)
        others = torch.tensor([0, 2, 5])
        assert_close(x[others], want[others], atol=1e-5, rtol=1e-5)
        assert_close(log_det[others], want_log_det[others], atol=1e-5, rtol=1e-5)
        for sample, before in ((1, 5), (4, 7)):
            assert_close(x[sample, :before], want[sample, :before], atol=1e-5, rtol=1e-5)
        assert x[1, 5].isnan() and log_det[1].isnan() and x[3, 0].isinf()

    def test_inputs_of_a_million(self, case):
        direction, make = case
        layer = randomised(make(None)).double()
        y = 1e6 * torch.randn(8, 12, dtype=torch.float64)
        got, want = (run(f, direction, y) for f in (mb.accelerate_sampling(layer), layer))
        assert_close(got, want, atol=1e-6, rtol=1e-9)

    def test_one_context_for_all(self):
        layer = nt.MaskedAffineAutoregressiveTransform(8, 16, context_features=2)
        randomised(layer, 0.3)
        y, context = torch.randn(9, 8), torch.randn(1, 2)
        want = layer.inverse(y, context)
        assert_close(mb.accelerate_sampling(layer).inverse(y, context), want)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_small_batches(self, batch):
        layer = randomised(mb.Autoregressive(7, hidden_features=8))
        y = torch.randn(batch, 7)
        assert_close(mb.ParallelInverse(layer)(y), layer(y))

    def test_gradients(self):
        layer = randomised(mb.Autoregressive(12, hidden_features=32)).double()
        y = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
        inputs = [y, *layer.parameters()]
        gradients = []
        for flow in (layer, mb.ParallelInverse(layer)):
            x, log_det = flow(y)
            total = x.sin().sum() + (log_det * x[:, 0].detach()).sum()
            gradients.append(torch.autograd.grad(total, inputs))
        assert_close(gradients[1], gradients[0], atol=1e-9, rtol=1e-9)

    def test_autocast_and_lower_precision(self):
        layer = randomised(mb.Autoregressive(12, hidden_features=32, context_features=2))
        y, context = torch.randn(10, 12), torch.randn(10, 2)
        fast = mb.ParallelInverse(layer)
        want = layer(y, context)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            got = fast(y, context)
        assert_close(got, want, atol=1e-5, rtol=1e-5)
        low = fast(y.bfloat16(), context)
        assert low[0].dtype == low[1].dtype == torch.bfloat16
        assert_close(low[0].float(), want[0], atol=0.2, rtol=0.1)

    def test_a_context_of_the_wrong_shape(self):
        fast = mb.ParallelInverse(mb.Autoregressive(4, hidden_features=8, context_features=2))
        with pytest.raises(ValueError, match=r"expected a context of shape \(3, 2\)"):
            fast(torch.zeros(3, 4), torch.zeros(3, 5))

    def test_max_iter_asks_for_iteration(self):
        layer = randomised(mb.Autoregressive(12, hidden_features=32))
        fast = mb.ParallelInverse(layer, max_iter=12)
        assert_close(fast(torch.ones(3, 12)), layer(torch.ones(3, 12)), atol=1e-5, rtol=1e-5)
        assert fast.last_iterations > 1


@pytest.mark.usefixtures("incrementally")
def test_what_is_no_buffer_may_be_on_another_device():
    """Blocks hold their degrees twice, and one of the two does not move with the module."""
    layer = randomised(nf.flows.MaskedAffineAutoregressive(6, 16, use_residual_blocks=False))
    y = torch.randn(5, 6)
    want = layer.inverse(y)
    for block in layer.autoregressive_net.blocks:
        block.degrees = block.degrees.to("meta")
    assert_close(mb.ParallelInverse(layer).inverse(y), want, atol=1e-5, rtol=1e-5)


def test_large_batches_are_solved_incrementally():
    layer = randomised(mb.Autoregressive(12, hidden_features=32))
    fast, y = mb.ParallelInverse(layer), torch.randn(2000, 12)
    assert_close(fast(y), layer(y), atol=1e-5, rtol=1e-5)
    assert fast.last_iterations == 1
    fast(y[:20])
    assert fast.last_iterations > 1


class Subclass(nf.flows.MaskedAffineAutoregressive):
    pass


def hooked():
    layer = mb.Autoregressive(4, hidden_features=8)
    layer.net.register_forward_hook(lambda *_: None)
    return layer


def reparametrised():
    layer = mb.Autoregressive(4, hidden_features=8)
    parametrizations.weight_norm(layer.net.final_layer)
    return layer


def with_a_net_of_ones_own():
    layer = nt.MaskedAffineAutoregressiveTransform(4, 8)
    layer.autoregressive_net = nn.Sequential(nn.Linear(4, 8))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        reparametrised,
        with_a_net_of_ones_own,
        lambda: Subclass(4, 8),
        lambda: nf.flows.MaskedAffineAutoregressive(4, 8, activation=nn.PReLU(8)),
        lambda: nf.flows.MaskedAffineAutoregressive(4, 8, use_batch_norm=True),
        lambda: LAYERS["normflows-circular"][1](None).mprqat,
    ],
)
def test_other_nets_are_iterated(make):
    layer = make()
    assert not supports(layer, next(layer.parameters()).shape[1])


@pytest.mark.usefixtures("incrementally")
@pytest.mark.parametrize("features", [3, 6, 8])
def test_inputs_of_the_wrong_width_are_refused(features):
    fast = mb.accelerate_sampling(nf.flows.MaskedAffineAutoregressive(4, 8))
    with pytest.raises(RuntimeError, match="shape"):
        fast.inverse(torch.zeros(3, features))


class TestGradients:
    @pytest.fixture
    def layers(self):
        layer = randomised(mb.Autoregressive(16, hidden_features=32), std=0.3)
        return layer, mb.ParallelInverse(layer)

    @pytest.mark.parametrize("scale", [1e-12, 1e-5, 1.0, 1e6])
    def test_of_any_size(self, layers, scale):
        y = torch.randn(64, 16, requires_grad=True)
        want, got = (torch.autograd.grad(scale * f(y)[0].sin().sum(), y)[0] for f in layers)
        assert_close(got / scale, want / scale, atol=1e-3, rtol=1e-4)

    def test_of_the_result_itself(self, layers):
        x, log_det = layers[1](torch.randn(4, 16, requires_grad=True))
        (gradient,) = torch.autograd.grad(x.square().sum(), x, create_graph=True)
        assert_close(gradient, 2 * x)
        x.retain_grad()
        (x.square().sum() + log_det.sum()).backward()
        assert_close(x.grad, 2 * x)

    def test_for_the_context_alone(self):
        layer = randomised(mb.Autoregressive(6, hidden_features=16, context_features=2))
        layer.requires_grad_(False)
        y, context = torch.randn(5, 6), torch.randn(5, 2, requires_grad=True)
        want, got = (
            torch.autograd.grad(f(y, context)[0].sin().sum(), context)[0]
            for f in (layer, mb.ParallelInverse(layer))
        )
        assert_close(got, want, atol=1e-4, rtol=1e-4)

    def test_under_transforms_of_torch_func(self, layers):
        layer, fast = layers
        y = torch.randn(3, 16)

        def loss(flow, parameters):
            return torch.func.functional_call(flow, parameters, (y,))[0].sin().sum()

        names = dict(layer.named_parameters())
        want, got = (torch.func.grad(partial(loss, flow))(names) for flow in layers)
        assert_close(got, want)
        jacobians = [
            torch.autograd.functional.jacobian(lambda y: fast(y)[0], y, vectorize=vectorize)
            for vectorize in (False, True)
        ]
        assert_close(*jacobians)


class TestAdversaries:
    def test_passes_that_overflow(self):
        """Where passes grow a thousandfold each on the way to a moderate solution."""
        layer = nf.flows.MaskedAffineAutoregressive(24, 23, num_blocks=0)
        net = layer.autoregressive_net
        with torch.no_grad():
            # x_i = (y_i + x_{i - 1}) / sigmoid(12 x_{i - 1} - 6), about 1 at the solution.
            net.initial_layer.weight.copy_(torch.eye(23, 24))
            net.initial_layer.bias.zero_()
            weight = torch.zeros(24, 2, 23)
            weight[1:] = torch.tensor([12.0, -1.0]).view(2, 1) * torch.eye(23).unsqueeze(1)
            net.final_layer.weight.copy_(weight.flatten(0, 1))
            net.final_layer.bias.copy_(torch.tensor([-8.0, 0.0]).repeat(24))
            net.final_layer.bias[0] = 4.0
        y = torch.full((5, 24), -0.01)
        y[:, 0] = torch.tensor([1.5, 2.0, 2.5, 3.0, -1.0])
        assert not layer.inverse(y)[0].isfinite().any()
        x, log_det = mb.accelerate_sampling(layer).inverse(y)
        again, log_det_again = layer(x)
        assert x[:4].isfinite().all()
        assert_close(again[:4], y[:4], atol=1e-5, rtol=1e-5)
        assert_close(log_det[:4], -log_det_again[:4], atol=1e-4, rtol=1e-4)

    def test_rows_that_break_on_the_way_are_solved_in_order(self):
        """Each entry is 1e200 times the one before it, unless that is right."""
        order = torch.arange(4)
        want = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3, dtype=torch.float64)

        def step(x, rows):
            new = want[rows].clone()
            new[:, 1:] += 1e200 * (x[:, :-1] - want[rows, :-1]) ** 3 * (rows > 0).unsqueeze(1)
            return new, new.sum(1)

        (x, total), passes = solve(step, torch.zeros(3, 4).double(), order, tol=1e-9)
        assert_close(x, want)
        assert_close(total, want.sum(1))
        assert passes == 2

    @pytest.mark.parametrize(
        "reparametrise", [parametrizations.weight_norm, parametrizations.spectral_norm]
    )
    def test_weights_that_are_computed(self, reparametrise):
        layer = randomised(mb.Autoregressive(6, hidden_features=16))
        reparametrise(layer.net.final_layer)
        layer.eval()
        y = torch.randn(5, 6)
        assert_close(mb.ParallelInverse(layer)(y), layer(y), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "options", [{"use_batch_norm": True}, {"dropout_probability": 0.5}]
    )
    def test_nets_whose_passes_differ(self, options):
        layer = nf.flows.MaskedAffineAutoregressive(6, 16, **options)
        fast = mb.ParallelInverse(layer)
        y = torch.randn(8, 6)
        with pytest.raises(ValueError, match="in training mode makes each pass differ; call"):
            fast.inverse(y)
        fast.eval()
        assert not layer.training
        assert_close(fast.inverse(y), layer.inverse(y), atol=1e-5, rtol=1e-5)

    def test_a_net_of_ones_own(self):
        class Strict(torch.nn.Module):
            def forward(self, inputs, context=None):
                before = inputs.cumsum(1) - inputs
                return torch.stack((before, before.sin()), dim=2).flatten(1)

        layer = nt.MaskedAffineAutoregressiveTransform(2, 4)
        layer.autoregressive_net = Strict()
        y = torch.randn(3, 2)
        want = layer.inverse(y)
        assert_close(mb.accelerate_sampling(layer).inverse(y), want)

    def test_one_context_for_all(self):
        layer = nt.MaskedAffineAutoregressiveTransform(
            8, 16, context_features=2, use_residual_blocks=False
        )
        randomised(layer, 0.5)
        y, context = torch.randn(9, 8), torch.randn(1, 2)
        want = layer.inverse(y, context)
        assert_close(mb.accelerate_sampling(layer).inverse(y, context), want)

    def test_inputs_of_a_million(self, case):
        direction, make = case
        layer = randomised(make(None)).double()
        y = 1e6 * torch.randn(8, 12, dtype=torch.float64)
        fast = mb.accelerate_sampling(layer)
        got, want = run(fast, direction, y), run(layer, direction, y)
        assert_close(got, want, atol=1e-6, rtol=1e-9)

    def test_nan_stays_in_its_sample(self):
        layer = randomised(nf.flows.MaskedAffineAutoregressive(12, 32))
        y = torch.randn(6, 12)
        want, want_log_det = layer.inverse(y)
        y[2, 5] = torch.nan
        x, log_det = mb.accelerate_sampling(layer).inverse(y)
        others = torch.tensor([0, 1, 3, 4, 5])
        assert_close(x[others], want[others], atol=1e-5, rtol=1e-5)
        assert_close(log_det[others], want_log_det[others], atol=1e-5, rtol=1e-5)
        assert_close(x[2, :5], want[2, :5], atol=1e-5, rtol=1e-5)
        assert x[2, 5].isnan() and log_det[2].isnan()

    @pytest.mark.parametrize("batch", [0, 1])
    @pytest.mark.parametrize("features", [1, 7])
    def test_small_sizes(self, batch, features):
        layer = randomised(mb.Autoregressive(features, hidden_features=8))
        y = torch.randn(batch, features, requires_grad=True)
        fast = mb.accelerate_sampling(layer)
        x, log_det = fast(y)
        assert (x.shape, log_det.shape) == (y.shape, (batch,))
        assert_close((x, log_det), layer(y))
        (x.sum() + log_det.sum()).backward()

    def test_samples_that_need_many_passes_do_not_hold_up_the_rest(self):
        layer = randomised(mb.Autoregressive(30, hidden_features=64), std=0.6)
        y = torch.randn(40, 30)
        y[:36] *= 1e-3
        rows = []
        handle = layer.net.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        with torch.no_grad():
            x, _ = mb.accelerate_sampling(layer)(y)
        handle.remove()
        assert rows[0] == 40 and rows[-1] <= 20
        assert_close(x, layer(y)[0], atol=1e-4, rtol=1e-4)


def test_memory_of_training_does_not_grow_with_the_number_of_passes():
    saved = []
    for std in (0.01, 0.4):
        layer = randomised(mb.Autoregressive(20, hidden_features=32), std)
        fast = mb.accelerate_sampling(layer)
        y = torch.randn(8, 20, requires_grad=True)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            partial(lambda sizes, t: sizes.append(t.numel()) or t, sizes), lambda t: t
        ):
            x, _ = fast(y)
        saved.append((fast.last_iterations, sum(sizes)))
        x.sum().backward()
    assert saved[0][0] < saved[1][0]
    assert saved[0][1] == saved[1][1]


def test_second_derivatives_are_refused():
    fast = mb.ParallelInverse(randomised(mb.Autoregressive(4, hidden_features=8)))
    y = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(fast(y)[0].sum(), y, create_graph=True)


def test_autocast_and_bfloat16():
    layer = randomised(mb.Autoregressive(12, hidden_features=32))
    y = torch.randn(10, 12)
    want = layer(y)
    with torch.autocast("cpu", torch.bfloat16):
        got = mb.accelerate_sampling(layer)(y)
        assert_close(got, layer(y), atol=5e-2, rtol=5e-2)
    assert got[0].dtype == torch.float32
    assert_close(got, want, atol=0.1, rtol=0.1)


def test_reverse_kl_trains():
    base = nf.distributions.DiagGaussian(6, trainable=False)
    flows = [mb.Autoregressive(6, hidden_features=16, reverse=bool(i % 2)) for i in range(2)]
    target = nf.distributions.DiagGaussian(6, trainable=False)
    target.loc += 2.0
    model = mb.accelerate_sampling(nf.NormalizingFlow(base, flows, target))
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    losses = []
    for _ in range(60):
        loss = model.reverse_kld(64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 8 and losses[-1] < 1


class TestAccelerateSampling:
    def test_normflows_densities(self):
        base = nf.distributions.DiagGaussian(12)
        flows = [
            layer
            for _ in range(2)
            for layer in (
                nf.flows.MaskedAffineAutoregressive(12, 32),
                nf.flows.AutoregressiveRationalQuadraticSpline(12, 1, 32),
                nf.flows.LULinearPermute(12),
            )
        ]
        model = randomised(nf.NormalizingFlow(base, flows), std=0.1)
        keys, x = list(model.state_dict()), torch.randn(9, 12)
        want = model.log_prob(x)
        before = copy.deepcopy(model)
        assert mb.accelerate_sampling(model, tol=1e-5) is model
        assert list(model.state_dict()) == keys
        assert_close(model.log_prob(x), want, atol=1e-4, rtol=1e-4)
        assert isinstance(model.flows[0], mb.ParallelInverse)
        assert isinstance(model.flows[1], mb.ParallelInverse)
        assert model.flows[0].tol == 1e-5
        before.load_state_dict(model.state_dict())
        mb.accelerate_sampling(model).load_state_dict(before.state_dict())  # nothing twice
        assert isinstance(model.flows[0].flow, nf.flows.MaskedAffineAutoregressive)

    def test_nflows_samples(self):
        transforms = [
            layer
            for _ in range(2)
            for layer in (
                nt.MaskedAffineAutoregressiveTransform(6, 16, context_features=2),
                nt.ReversePermutation(6),
            )
        ]
        base = nflows.distributions.StandardNormal([6])
        flow = nflows.flows.Flow(nt.CompositeTransform(transforms), base)
        randomised(flow)
        context = torch.randn(3, 2)
        torch.manual_seed(1)
        want = flow.sample(5, context)
        mb.accelerate_sampling(flow)
        torch.manual_seed(1)
        assert_close(flow.sample(5, context), want, atol=1e-4, rtol=1e-4)
        assert flow._transform._transforms[0].last_iterations <= 6

    def test_mixer_flow_with_autoregressive_patches(self):
        model = mb.presets.maf_hybrid((1, 8, 8), 2, 2, hidden_features=8, num_classes=3)
        randomised(model, std=0.05)
        x, labels = torch.rand(3, 1, 8, 8), torch.arange(3)
        z = model.inverse(x, labels)
        mb.accelerate_sampling(model)
        assert_close(model(z, labels), x, atol=1e-4, rtol=1e-4)
        assert sum(isinstance(m, mb.ParallelInverse) for m in model.modules()) == 4

    def test_a_layer_in_two_places_stays_one(self):
        layer = mb.Autoregressive(4, hidden_features=8)
        chain = mb.Chain([layer, mb.ActNorm(4), layer])
        mb.accelerate_sampling(chain)
        assert chain.flows[0] is chain.flows[2]
        assert isinstance(mb.accelerate_sampling(layer), mb.ParallelInverse)

    def test_a_layer_of_nflows_keeps_its_direction(self):
        layer = randomised(nt.MaskedAffineAutoregressiveTransform(6, 16))
        fast, x = mb.accelerate_sampling(layer), torch.randn(4, 6)
        assert isinstance(fast, nt.Transform)
        wrapped = mb.ParallelInverse(mb.from_nflows(layer))
        assert_close(wrapped(x), layer.inverse(x), atol=1e-5, rtol=1e-5)
        for flow in (
            mb.from_nflows(fast),
            mb.accelerate_sampling(mb.from_nflows(layer)),
            wrapped,
        ):
            assert_close(flow.inverse(x), layer(x))

    def test_a_second_call_replaces_the_options(self):
        model = mb.accelerate_sampling(mb.Chain([mb.Autoregressive(3, hidden_features=4)]))
        layer = model.flows[0].flow
        mb.accelerate_sampling(model, tol=1e-3)
        assert model.flows[0].flow is layer and model.flows[0].tol == 1e-3

    def test_warns_where_there_is_nothing_to_do(self):
        with pytest.warns(UserWarning, match="Coupling holds no layer to wrap"):
            mb.accelerate_sampling(mb.Coupling(4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: mb.ParallelInverse(mb.ActNorm(3)),
            TypeError,
            "ActNorm has no sequential direction",
        ),
        (lambda: mb.ParallelInverse(nt.LULinear(3)), TypeError, "LULinear of nflows runs the"),
        (lambda: fast_of()(None), TypeError, "expected a tensor, got NoneType"),
        (lambda: fast_of(tol=0.0), ValueError, "tol must be positive, got 0.0"),
        (lambda: fast_of(max_iter=0), ValueError, "max_iter must be at least 1, got 0"),
        (lambda: fast_of()(torch.zeros(3)), ValueError, r"\(batch, features\), got \(3,\)"),
        (lambda: fast_of()(torch.zeros(2, 3).long()), TypeError, "floating point tensor"),
    ],
)
def test_wrong_use_is_one_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


def fast_of(**options):
    return mb.ParallelInverse(mb.Autoregressive(3, hidden_features=4), **options)


def test_an_empty_batch_is_no_example_of_a_trace():
    """A graph of it would give back whatever it gets."""
    layer = mb.ParallelInverse(nf.flows.MaskedAffineAutoregressive(3, 8))
    with pytest.raises(ValueError, match="a graph of an empty batch would hold no layer"):
        torch.jit.trace(layer, (torch.zeros(0, 3),), check_trace=False)


@pytest.mark.parametrize("example", [0, 4])
def test_a_trace_of_normflows_permutation_raises_in_batches_of_other_sizes(example):
    """It keeps the number of zeros of its example, which is broadcast to one sample."""
    layer = mb.Chain([mb.LULinear(3), nf.flows.Permute(3)])
    traced = torch.jit.trace(layer, (torch.zeros(example, 3),), check_trace=False)
    for batch in {0, 1, 4, 7} - {example}:
        with pytest.raises(RuntimeError, match="must match"):
            traced(torch.zeros(batch, 3))
