"""What `accelerate_sampling` wraps and what it leaves alone."""

import copy
import functools
import warnings
from typing import get_type_hints

import nflows.distributions
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import pytest
import torch
import zuko
from nflows.transforms.autoregressive import AutoregressiveTransform
from normflows.flows.affine.autoregressive import Autoregressive
from random_layers import randomised
from torch import nn
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.running import incremental_made


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


SCALES = torch.arange(1.0, 7.0)
LOG_SCALE = SCALES.log().sum()


def scaled(base):
    """A subclass that scales in one direction and undoes it in the other."""

    class Scaled(base):
        def inverse(self, x, context=None):
            z, log_det = super().inverse(SCALES * x, context)
            return z, log_det + LOG_SCALE

        def forward(self, z, context=None):
            x, log_det = super().forward(z, context)
            return x / SCALES, log_det - LOG_SCALE

    return Scaled


def with_steps_scaled(base):
    class Scaled(base):
        def _elementwise_inverse(self, inputs, params):
            x, log_det = super()._elementwise_inverse(inputs, params)
            return SCALES * x, log_det + LOG_SCALE

        def _elementwise_forward(self, inputs, params):
            y, log_det = super()._elementwise_forward(inputs / SCALES, params)
            return y, log_det - LOG_SCALE

    return Scaled


class OwnParams(mb.Autoregressive):
    def _params(self, x, context):
        return super()._params(x, context) + 0.5


class OwnStep(mb.Autoregressive):
    def jacobi_step(self, z, x, context=None):
        raise AssertionError("not what forward does")


def ours(layer=mb.Autoregressive):
    return layer(6, hidden_features=16)


def hooked(register):
    layer = ours()
    if register == "register_forward_hook":
        layer.register_forward_hook(lambda module, args, output: (2 * output[0], output[1]))
    else:
        layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return layer


def spline():
    return nf.flows.AutoregressiveRationalQuadraticSpline(6, 1, 16)


def maf():
    return nf.flows.MaskedAffineAutoregressive(6, 16)


def spline_with_an_own_loop():
    layer = spline()
    layer.mprqat.__class__ = scaled(type(layer.mprqat))
    return layer


def replaced(layer, name, change, *parts):
    """A method that is replaced on the instance, or on a part of it."""
    part = layer.get_submodule(".".join(parts))
    method = getattr(part, name)
    setattr(part, name, lambda *args, **kwargs: change(method(*args, **kwargs)))
    return layer


def double_first(results):
    return 2 * results[0], results[1]


# Layers of 6 features that are not what they were built on, and whether they are wrapped.
CHANGED = {
    "normflows, own directions": (
        lambda: scaled(nf.flows.MaskedAffineAutoregressive)(6, 16),
        False,
    ),
    "normflows, own steps": (
        lambda: with_steps_scaled(nf.flows.MaskedAffineAutoregressive)(6, 16),
        True,
    ),
    "nflows, own directions": (
        lambda: scaled(nt.MaskedAffineAutoregressiveTransform)(6, 16),
        False,
    ),
    "nflows, own steps": (
        lambda: with_steps_scaled(nt.MaskedAffineAutoregressiveTransform)(6, 16),
        True,
    ),
    "nflows, turned round": (
        lambda: mb.from_nflows(scaled(nt.MaskedAffineAutoregressiveTransform)(6, 16)),
        False,
    ),
    "spline, own directions": (
        lambda: scaled(nf.flows.AutoregressiveRationalQuadraticSpline)(6, 1, 16),
        True,  # what it holds is
    ),
    "spline, own loop inside": (spline_with_an_own_loop, False),
    "own directions": (lambda: ours(scaled(mb.Autoregressive)), False),
    "own parameters": (lambda: ours(OwnParams), True),
    "own step": (lambda: ours(OwnStep), False),
    "hook": (lambda: hooked("register_forward_hook"), False),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), False),
    "replaced inverse": (lambda: replaced(maf(), "inverse", double_first), False),
    "replaced forward": (lambda: replaced(ours(), "forward", double_first), False),
    "replaced step": (lambda: replaced(maf(), "_elementwise_inverse", double_first), True),
    "replaced parameters": (lambda: replaced(ours(), "_params", lambda p: p + 0.5), True),
    "replaced net": (lambda: replaced(ours(), "forward", lambda p: p / 2, "net"), True),
    "replaced linear layer": (
        lambda: replaced(
            maf(), "forward", lambda p: p / 2, "autoregressive_net", "final_layer"
        ),
        True,
    ),
}


@pytest.mark.parametrize("threshold", [0, 1 << 40], ids=["incremental", "iterated"])
@pytest.mark.parametrize("name", CHANGED)
def test_what_is_changed_keeps_its_numbers(name, threshold, monkeypatch):
    monkeypatch.setattr(incremental_made, "_MIN_PRODUCTS", threshold)
    make, wrapped = CHANGED[name]
    layer = randomised(make())
    y = torch.randn(7, 6)
    want = [run(y) for run in (layer, layer.inverse)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = mb.accelerate_sampling(layer)
    assert (
        any(type(m).__name__.startswith(("Parallel", "_P")) for m in fast.modules()) == wrapped
    )
    for got, expected in zip([run(y) for run in (fast, fast.inverse)], want):
        assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("threshold", [0, 1 << 40], ids=["incremental", "iterated"])
@pytest.mark.parametrize("where", ["class", "hook"])
def test_what_is_changed_after_it_was_wrapped_keeps_its_numbers(where, threshold, monkeypatch):
    monkeypatch.setattr(incremental_made, "_MIN_PRODUCTS", threshold)
    if where == "class":
        base, layer = nf.flows.MaskedAffineAutoregressive, randomised(maf())
        fast, direction = mb.ParallelInverse(layer), "inverse"
        step = base._elementwise_inverse
        monkeypatch.setattr(
            base,
            "_elementwise_inverse",
            lambda self, y, params: (
                SCALES * step(self, y, params)[0],
                step(self, y, params)[1],
            ),
        )
    else:
        layer = randomised(ours())
        fast, direction = mb.ParallelInverse(layer), "__call__"
        layer.register_forward_hook(lambda module, args, output: double_first(output))
    y = torch.randn(5, 6)
    got, want = (getattr(flow, direction)(y) for flow in (fast, layer))
    assert_close(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("base", "layer"),
    [
        (Autoregressive, nf.flows.MaskedAffineAutoregressive),
        (AutoregressiveTransform, nt.MaskedAffineAutoregressiveTransform),
    ],
    ids=["normflows", "nflows"],
)
def test_a_loop_that_was_replaced_in_its_class_is_left_as_it_is(base, layer, monkeypatch):
    loop = base.inverse
    replacement = functools.wraps(loop)(lambda *args, **kwargs: loop(*args, **kwargs))
    monkeypatch.setattr(base, "inverse", replacement)
    with pytest.warns(UserWarning, match="holds no layer to wrap"):
        mb.accelerate_sampling(layer(6, 16))


@pytest.mark.parametrize("max_iter", [None, 2])
def test_a_net_that_reads_in_an_order_of_its_own(max_iter):
    class Backwards(nn.Module):
        def forward(self, x, context=None):
            after = x @ torch.ones(6, 6, dtype=x.dtype).tril(-1)
            return torch.stack((after.sin(), after), dim=2).flatten(1)

    layer = nt.MaskedAffineAutoregressiveTransform(6, 16)
    layer.autoregressive_net = Backwards()
    y = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for flow in (layer, mb.accelerate_sampling(layer, max_iter=max_iter)):
        x, log_det = flow.inverse(y)
        results.append((x, log_det, *torch.autograd.grad(x.sum() + log_det.sum(), y)))
    assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


class Swapped(mb.Autoregressive):
    """Reads features 0 and 5 in each other's place."""

    def _order(self, x):
        return x[:, [5, 1, 2, 3, 4, 0]]


@pytest.mark.parametrize("max_iter", [None, 2])
def test_a_layer_with_an_order_of_its_own(max_iter):
    layer = randomised(ours(Swapped), 0.3)
    y = torch.randn(5, 6)
    fast = mb.ParallelInverse(layer, max_iter=max_iter)
    assert_close(fast(y), layer(y), atol=1e-5, rtol=1e-5)


def test_events_of_more_dimensions_are_left_to_the_layer():
    class Before(nn.Module):
        def forward(self, x, context=None):
            before = x.flatten(1).cumsum(1) - x.flatten(1)
            return torch.stack((before.sin(), before.cos()), dim=2).view(*x.shape, 2)

    class OfImages(nt.MaskedAffineAutoregressiveTransform):
        def _unconstrained_scale_and_shift(self, params):
            return params.unbind(-1)

    layer = OfImages(4, 8)
    layer.autoregressive_net = Before()
    x = torch.randn(3, 1, 2, 2)
    fast = mb.accelerate_sampling(layer)
    assert_close(fast.inverse(fast(x)[0])[0], x, atol=1e-4, rtol=1e-4)
    assert_close(fast.inverse(x), layer.inverse(x))


UNCONDITIONAL = {
    "mixer_bijectors": lambda: mb.Autoregressive(4, hidden_features=8),
    "normflows": lambda: nf.flows.MaskedAffineAutoregressive(4, 8),
    "normflows, spline": lambda: nf.flows.AutoregressiveRationalQuadraticSpline(4, 1, 8),
    "nflows": lambda: mb.from_nflows(nt.MaskedAffineAutoregressiveTransform(4, 8)),
}


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_a_layer_without_context_gets_none_of_a_conditional_model(name):
    layers = [UNCONDITIONAL[name](), mb.Coupling(4, hidden_features=8, context_features=2)]
    chain = randomised(mb.Chain(layers), std=0.1)
    x, context = torch.randn(5, 4), torch.randn(5, 2)
    want = chain(x, context), chain.inverse(x, context)
    mb.accelerate_sampling(chain)
    assert isinstance(chain.flows[0], mb.ParallelInverse)
    assert_close((chain(x, context), chain.inverse(x, context)), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 2),
        lambda: zuko.flows.MAF(2, 2),
        lambda: mb.Coupling(4),
        lambda: nf.NormalizingFlow(nf.distributions.DiagGaussian(2), []),
        lambda: scaled(nf.flows.MaskedAffineAutoregressive)(6, 16),
        nn.ModuleList,
    ],
)
def test_warns_wherever_nothing_is_wrapped(make):
    model = make()
    with pytest.warns(UserWarning, match=f"{type(model).__name__} holds no layer to wrap"):
        assert mb.accelerate_sampling(model) is model


def test_type_checkers_see_the_type_of_the_model():
    hints = get_type_hints(mb.accelerate_sampling)
    assert hints["return"] is hints["model"]


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="accelerate_sampling: expected a module, got list"):
        mb.accelerate_sampling([ours()])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.AlphaDropout(0.5), "AlphaDropout in training mode"),
        (nn.BatchNorm1d(16), "BatchNorm1d in training mode"),
        (nn.BatchNorm1d(16, track_running_stats=False).eval(), "without running statistics"),
    ],
)
def test_passes_that_differ_are_refused(part, message):
    layer = ours().eval()
    layer.net.blocks[0].dropout = part
    with pytest.raises(ValueError, match=message):
        mb.ParallelInverse(layer)(torch.zeros(3, 6))
