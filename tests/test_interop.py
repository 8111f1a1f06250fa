"""Layers in nflows, torch.distributions, zuko and pyro, and transforms of nflows in ours."""

import copy
import pickle

import nflows.distributions
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import pyro
import pytest
import torch
import zuko
from conftest import IMAGE
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.testing import assert_close

import mixer_bijectors as mb


class TestEveryLayerThroughToNflows:
    """What the tests of nflows ask of a transform."""

    @pytest.fixture
    def setting(self, case, device):
        double = {"dtype": torch.float64, "device": device}
        layer = case.build(**double)
        return layer, mb.to_nflows(layer), case.data(**double), case.context(**double)

    def test_values_and_signs(self, setting):
        layer, transform, x, context = setting
        noise, log_det = transform(x, context)
        assert noise.isfinite().all() and log_det.shape == (len(x),)
        assert_close((noise, log_det), layer.inverse(x, context=context))
        back, log_det_back = transform.inverse(noise, context)
        assert_close(back, x, atol=1e-9, rtol=1e-9)
        assert_close(log_det_back, -log_det, atol=1e-9, rtol=1e-9)

    def test_in_compositions(self, setting):
        _, transform, x, context = setting
        there_and_back = nt.CompositeTransform([transform, nt.InverseTransform(transform)])
        y, log_det = there_and_back(x, context)
        assert_close(y, x, atol=1e-9, rtol=1e-9)
        assert_close(log_det, torch.zeros_like(log_det), atol=1e-9, rtol=1e-9)

    def test_in_a_flow(self, setting, case):
        layer, transform, x, context = setting
        shape = case.latent_event or case.event
        flow = nflows.flows.Flow(transform, nflows.distributions.StandardNormal(shape)).to(x)
        base = nf.distributions.DiagGaussian(shape, trainable=False).to(x)
        z, log_det = layer.inverse(x, context=context)
        assert_close(flow.log_prob(x, context), base.log_prob(z) + log_det)
        if context is None:
            assert flow.sample(3).shape == (3, *case.event)
        else:
            assert flow.sample(3, context).shape == (len(x), 3, *case.event)


def test_adapters_share_parameters_and_come_off():
    layer, transform = mb.Coupling(6), nt.MaskedAffineAutoregressiveTransform(6, 16)
    assert mb.from_nflows(mb.to_nflows(layer)) is layer
    assert mb.to_nflows(mb.from_nflows(transform)) is transform
    assert set(mb.to_nflows(layer).parameters()) == set(layer.parameters())
    for adapter in (mb.to_nflows(layer), mb.from_nflows(transform)):
        for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            assert list(other.state_dict()) == list(adapter.state_dict())


def test_multiscale():
    multiscale = nt.MultiscaleCompositeTransform(2)
    hidden = multiscale.add_transform(mb.to_nflows(mb.PixelMixing(mb.Coupling(4))), (4, 4, 6))
    patchify = mb.Patchify(hidden, 2)
    inside = mb.Chain([nf.flows.Reverse(patchify), mb.ChannelMixing(mb.Coupling(8)), patchify])
    multiscale.add_transform(mb.to_nflows(inside), hidden)
    flow = nflows.flows.Flow(multiscale, nflows.distributions.StandardNormal([96])).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(5, 4, 4, 6, dtype=torch.float64)
    noise, log_det = multiscale(x)
    back, log_det_back = multiscale.inverse(noise)
    assert_close(back, x)
    assert_close(log_det_back, -log_det)
    assert flow.log_prob(x).shape == (5,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nt.MaskedAffineAutoregressiveTransform(6, 16),
        lambda: nt.LULinear(6),
        lambda: nt.RandomPermutation(6),
        lambda: nt.CompositeTransform([nt.SVDLinear(6, 2), nt.LeakyReLU()]),
        lambda: nt.PointwiseAffineTransform(shift=1.0, scale=2.0),
    ],
)
def test_transforms_of_nflows_as_flows(make):
    transform = make().double()
    flow = mb.from_nflows(transform)
    x = torch.randn(4, 6, dtype=torch.float64)
    mb.check_bijection(flow, x)
    assert_close(flow.inverse(x), transform(x))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(6).double(), [flow])
    assert model.log_prob(x).shape == (4,)


def test_context_reaches_transforms_of_nflows():
    transform = nt.MaskedAffineAutoregressiveTransform(6, 16, context_features=2)
    chain = mb.Chain([mb.from_nflows(transform), mb.Coupling(6)])
    x, context = torch.randn(5, 6), torch.randn(5, 2)
    z, _ = chain.inverse(x, context)
    assert not torch.allclose(z, chain.inverse(x, context + 1)[0])
    assert_close(chain(z, context)[0], x, atol=1e-4, rtol=1e-4)


def test_errors_of_nflows_are_passed_on():
    class OneWay(nt.Transform):
        def forward(self, inputs, context=None):
            return inputs, inputs.new_zeros(len(inputs))

    x = torch.randn(5, 6)
    with pytest.raises(nt.InverseNotAvailable):
        mb.from_nflows(OneWay())(x)
    with pytest.raises(nt.InputOutsideDomain):
        mb.from_nflows(nt.Logit()).inverse(x)


class TestToTorchTransform:
    @pytest.fixture
    def layer(self):
        layer = mb.Chain([mb.Coupling(6), mb.Coupling(6, reverse=True)])
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        return layer

    @pytest.fixture
    def base(self):
        return Independent(Normal(torch.zeros(6), torch.ones(6)), 1)

    @pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
    def test_densities_are_ours(self, layer, base, batch):
        model = TransformedDistribution(base, mb.to_torch_transform(layer))
        ours = nf.NormalizingFlow(nf.distributions.DiagGaussian(6, trainable=False), [layer])
        x = torch.randn(*batch, 6)
        want = ours.log_prob(x.reshape(-1, 6)).reshape(batch)
        assert_close(model.log_prob(x), want, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(), (5,), (4, 3)])
    def test_samples_remember_their_density(self, layer, base, shape):
        model = TransformedDistribution(base, mb.to_torch_transform(layer, cache_size=1))
        x = model.rsample(shape)
        assert x.shape == (*shape, 6)
        calls = []
        layer.flows[0].net.register_forward_hook(lambda *_: calls.append(1))
        log_prob = model.log_prob(x)
        assert not calls
        assert_close(model.log_prob(x.clone()), log_prob, atol=1e-5, rtol=1e-5)
        assert len(calls) == 1

    @pytest.mark.parametrize("cache_size", [0, 1])
    @pytest.mark.parametrize(
        "change",
        [
            lambda layer, x: layer.flows[0].net.final.weight.add_(0.1),
            lambda layer, x: layer.load_state_dict(
                {k: v + 0.1 for k, v in layer.state_dict().items()}, assign=True
            ),
            lambda layer, x: x.mul_(2),
        ],
        ids=["step", "load", "input"],
    )
    def test_nothing_stale_is_remembered(self, layer, base, change, cache_size):
        transform = mb.to_torch_transform(layer, cache_size=cache_size)
        model = TransformedDistribution(base, transform)
        with torch.no_grad():
            x = model.sample((5,))
            before = model.log_prob(x)
            change(layer, x)
            after = model.log_prob(x)
            fresh = TransformedDistribution(base, mb.to_torch_transform(layer))
        assert_close(after, fresh.log_prob(x))
        assert not torch.allclose(after, before)
        weight = layer.flows[0].net.final.weight
        (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), weight)
        assert gradient.abs().sum() > 0
        copy.deepcopy(transform)(x)

    def test_densities_can_be_differentiated_twice_in_a_row(self, layer, base):
        model = TransformedDistribution(base, mb.to_torch_transform(layer))
        x = torch.randn(5, 6)
        for _ in range(2):
            model.log_prob(x).sum().backward()

    def test_without_memory(self, layer, base):
        transform = mb.to_torch_transform(layer, cache_size=1).with_cache(0)
        z = torch.randn(5, 6)
        x, log_det = layer(z)
        assert_close(transform(z), x)
        assert_close(transform.log_abs_det_jacobian(z, x), log_det, atol=1e-5, rtol=1e-5)
        assert_close(transform.inv(x), z, atol=1e-5, rtol=1e-5)
        assert transform.with_cache(0) is transform

    def test_context_broadcasts_over_the_batch(self, base):
        layer = mb.Coupling(6, context_features=2)
        torch.nn.init.normal_(layer.net.final.weight)
        context = torch.randn(3, 2)
        transform = mb.to_torch_transform(layer, context=context)
        x = torch.randn(4, 3, 6)
        want = torch.stack([layer.inverse(one, context)[0] for one in x])
        assert_close(transform.inv(x), want)
        model = TransformedDistribution(base.expand((3,)), transform)
        assert model.log_prob(x).shape == (4, 3)

    def test_events_that_change_shape(self):
        patchify = mb.Patchify(IMAGE, 2)
        transform = mb.to_torch_transform(patchify, 3, latent_event_dim=2)
        base = Independent(Normal(torch.zeros(6, 12), torch.ones(6, 12)), 2)
        model = TransformedDistribution(base, transform)
        assert model.event_shape == IMAGE
        assert model.log_prob(model.sample((5,))).shape == (5,)
        assert transform.inverse_shape((9, *IMAGE)) == (9, 6, 12)

    def test_in_zuko(self, layer, base):
        flow = zuko.distributions.NormalizingFlow(mb.to_torch_transform(layer).inv, base)
        x = torch.randn(5, 6)
        want = TransformedDistribution(base, mb.to_torch_transform(layer)).log_prob(x)
        assert_close(flow.log_prob(x), want)
        samples, log_prob = flow.rsample_and_log_prob((4,))
        assert_close(flow.log_prob(samples), log_prob, atol=1e-5, rtol=1e-5)

    def test_in_pyro(self, layer):
        def model():
            pyro.module("layer", layer)
            base = pyro.distributions.Normal(torch.zeros(6), torch.ones(6)).to_event(1)
            flow = pyro.distributions.TransformedDistribution(
                base, [mb.to_torch_transform(layer)]
            )
            with pyro.plate("data", 8):
                return pyro.sample("x", flow)

        trace = pyro.poutine.trace(model).get_trace()
        trace.compute_log_prob()
        assert trace.nodes["x"]["log_prob"].shape == (8,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mb.to_nflows(nt.LULinear(3)), TypeError, "of normflows, got LULinear; of a"),
        (lambda: mb.from_nflows(mb.LULinear(3)), TypeError, "of nflows, got LULinear"),
        (lambda: mb.to_torch_transform(nt.LULinear(3)), TypeError, "normflows, got LULinear"),
        (
            lambda: mb.to_torch_transform(mb.LULinear(3), context=torch.zeros(3, 2))(
                torch.zeros(3)
            ),
            ValueError,
            r"a context of shape \(3, 2\) does not broadcast over a batch of shape \(\)",
        ),
        (lambda: mb.to_torch_transform(mb.LULinear(3), 0), ValueError, "dimensions, got 0"),
    ],
)
def test_wrong_use_is_one_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()
