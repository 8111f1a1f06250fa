"""Layers with a MADE, solved in one pass of their nets."""

from functools import partial

import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from autoregressive_layers import CONTEXT, LAYERS, run
from random_layers import randomised
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import swa_utils
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.running import incremental_made
from mixer_bijectors.running.incremental_made import supports

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


@pytest.fixture(params=LAYERS, ids=str)
def case(request):
    return LAYERS[request.param]


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: mb.Autoregressive(16, hidden_features=64),
        lambda: mb.Autoregressive(16, hidden_features=64, reverse=True),
        lambda: nf.flows.MaskedAffineAutoregressive(16, 64),
        lambda: nf.flows.AutoregressiveRationalQuadraticSpline(16, 1, 64),
    ],
    ids=["affine", "reverse", "maf", "spline of normflows"],
)
@pytest.mark.parametrize("rows", [3, 4000], ids=["iterated", "incremental"])
def test_an_averaged_layer_is_solved_as_the_layer(make, rows):
    """Degrees of a MADE are whole numbers, of which an average is not what it was."""
    layer = make().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    averaged = swa_utils.AveragedModel(
        layer, use_buffers=True, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9999)
    )
    for _ in range(5):
        averaged.update_parameters(layer)
    x = torch.randn(rows, 16)
    with torch.no_grad():
        for method in ("forward", "inverse"):
            got, want = (
                getattr(mb.ParallelInverse(module), method)(x)
                for module in (averaged.module, layer)
            )
            assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("incrementally")
def test_hooks_of_all_modules_run():
    layer = randomised(nf.flows.MaskedAffineAutoregressive(6, 16))
    fast, x = mb.ParallelInverse(layer), torch.randn(9, 6)

    def halve(module, _, output):
        return output / 2 if type(module).__name__ == "MaskedLinear" else None

    handle = nn.modules.module.register_module_forward_hook(halve)
    try:
        assert_close(fast.inverse(x), layer.inverse(x), atol=1e-5, rtol=1e-5)
    finally:
        handle.remove()
