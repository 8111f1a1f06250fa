"""Parallel inversion against the sequential solve of the layer itself."""

import copy
import pickle
from functools import partial

import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from autoregressive_layers import CONTEXT, EXACT, LAYERS, run
from random_layers import randomised
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.solvers.fixed_point import solve


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
        (
            lambda: fast_of(max_iter=0),
            ValueError,
            "max_iter must be a whole number from 1, got 0",
        ),
        (lambda: fast_of()(torch.zeros(3)), ValueError, r"\(batch, features\), got \(3,\)"),
        (lambda: fast_of()(torch.zeros(2, 3).long()), TypeError, "floating point tensor"),
    ],
)
def test_wrong_use_is_one_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


def fast_of(**options):
    return mb.ParallelInverse(mb.Autoregressive(3, hidden_features=4), **options)


@pytest.mark.filterwarnings("ignore")  # tracing warns of checks, and of being out of date
class TestTracing:
    @pytest.fixture(params=[None, 3], ids=["", "max_iter"])
    def layers(self, request):
        layer = randomised(mb.Autoregressive(8, hidden_features=32), 0.4)
        return layer, mb.ParallelInverse(layer, max_iter=request.param)

    @pytest.mark.parametrize("gradients", [False, True])
    @pytest.mark.parametrize(
        "trace",
        [
            lambda f: torch.jit.trace(f, torch.zeros(6, 8)),
            lambda f: make_fx(f)(torch.zeros(6, 8)),
            lambda f: torch.compile(f, backend="eager", fullgraph=True),
        ],
        ids=["jit", "make_fx", "compile"],
    )
    def test_is_exact_for_other_values(self, layers, trace, gradients):
        layer, fast = layers
        layer.requires_grad_(gradients)
        traced = trace(fast)
        y = 2 * torch.randn(6, 8)
        assert_close(traced(y), layer(y), atol=1e-5, rtol=1e-5)

    @pytest.mark.skipif(
        torch.__version__.startswith("2.5."),
        reason="this version looks up the names of parameters in the state_dict",
    )
    def test_exports_any_batch(self, layers):
        layer, fast = layers
        sizes = {"z": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(fast, (torch.zeros(3, 8),), dynamic_shapes=sizes)
        y = torch.randn(9, 8)
        assert_close(exported.module()(y), layer(y), atol=1e-5, rtol=1e-5)

    def test_of_a_transformer(self):
        layer = randomised(mb.TransformerAutoregressive(5, 3, channels=16, head_dim=8), 0.1)
        z = torch.randn(4, 5, 3)
        want = layer(z)
        for traced in (torch.jit.trace(layer, 0 * z), make_fx(layer)(0 * z)):
            assert_close(traced(z), want, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "trace",
        [
            torch.jit.trace,
            lambda f, x: make_fx(f)(x),
            lambda f, x: torch.export.export(f, (x,), strict=False),
        ],
        ids=["jit", "make_fx", "export"],
    )
    def test_of_a_solver_is_refused(self, trace):
        layer = mb.ContinuousFlow(3, hidden_features=8).eval()
        with pytest.raises(RuntimeError, match="cannot be traced or exported, nor run"):
            trace(layer, torch.zeros(2, 3))


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
