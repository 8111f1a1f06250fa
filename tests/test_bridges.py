"""Layers in nflows, torch.distributions, zuko and pyro, and transforms of nflows in ours."""

import copy
import pickle
import subprocess
import sys

import nflows.distributions
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from conftest import IMAGE
from torch import nn
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


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: nt.MaskedAffineAutoregressiveTransform(6, 16, context_features=2), 2),
        (lambda: nt.AffineCouplingTransform([0, 1, 0], lambda i, o: _resnet(i, o, 3)), 3),
        (
            lambda: nt.CompositeTransform([nt.LULinear(6), mb.to_nflows(_conditional_chain())]),
            2,
        ),
        (lambda: nt.CompositeTransform([nt.LULinear(6), nt.ReversePermutation(6)]), 0),
        (lambda: nt.AffineCouplingTransform([0, 1, 0], _Net), None),
    ],
)
def test_flows_say_what_context_transforms_of_nflows_read(make, size):
    assert mb.from_nflows(make()).context_features == size
    assert mb.from_nflows(make(), context_features=7).context_features == 7


@pytest.mark.parametrize("wrong", [None, torch.zeros(1, 2), torch.zeros(5, 3)])
def test_transforms_of_nflows_need_the_context_that_they_read(wrong):
    transform = nt.MaskedAffineAutoregressiveTransform(6, 16, context_features=2)
    flow = mb.from_nflows(transform)
    for run in (flow, flow.inverse):
        with pytest.raises(ValueError, match=r"MaskedAffineAuto.* context .*\(5, 2\)"):
            run(torch.randn(5, 6), wrong)


def _resnet(inputs, outputs, context):
    return nflows.nn.nets.ResidualNet(inputs, outputs, 8, context_features=context)


def _conditional_chain():
    return mb.Chain([mb.Coupling(6, context_features=2)])


class _Net(nn.Linear):
    def forward(self, inputs, context=None):
        return super().forward(inputs)


def test_a_context_reaches_transforms_of_nflows_in_distributions():
    transform = nt.MaskedAffineAutoregressiveTransform(6, 16, context_features=2)
    x, context = torch.randn(5, 6), torch.randn(5, 2)
    adapted = mb.to_torch_transform(mb.from_nflows(transform), context=context)
    assert_close(adapted.inv(x), transform(x, context)[0])


def test_errors_of_nflows_are_passed_on():
    class OneWay(nt.Transform):
        def forward(self, inputs, context=None):
            return inputs, inputs.new_zeros(len(inputs))

    x = torch.randn(5, 6)
    with pytest.raises(nt.InverseNotAvailable):
        mb.from_nflows(OneWay())(x)
    with pytest.raises(nt.InputOutsideDomain):
        mb.from_nflows(nt.Logit()).inverse(x)


def _conditional(context):
    return mb.to_torch_transform(mb.Coupling(3, context_features=2), context=context)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mb.to_nflows(nt.LULinear(3)), TypeError, "wrap it in from_nflows"),
        (lambda: mb.from_nflows(mb.LULinear(3)), TypeError, "of nflows, got LULinear"),
        (
            lambda: mb.to_torch_transform(nt.LULinear(3)),
            TypeError,
            "LULinear is a transform",
        ),
        (
            lambda: _conditional(torch.zeros(3, 2)).inv(torch.zeros(4, 3)),
            ValueError,
            r"a context of shape \(3, 2\) does not broadcast with a batch of shape \(4,\)",
        ),
        (
            lambda: mb.to_torch_transform(mb.LULinear(3), context=torch.zeros(3, 2)),
            ValueError,
            "no layer of LULinear reads one",
        ),
        (
            lambda: _conditional(torch.zeros(3, 1)),
            ValueError,
            r"a context of shape \(\.\.\., 2\), got \(3, 1\)",
        ),
        (lambda: _conditional(torch.tensor([1, 2])), TypeError, "point tensor .* torch.int64"),
        (lambda: _conditional([1.0, 2.0]), TypeError, "point tensor .* got list"),
        (lambda: mb.to_torch_transform(mb.LULinear(3), 0), ValueError, "dimensions, got 0"),
        (
            lambda: mb.to_torch_transform(mb.LULinear(3), 2)(torch.zeros(3)),
            ValueError,
            r"events of 2 dimensions, got shape \(3,\)",
        ),
        (
            lambda: mb.to_torch_transform(mb.Patchify(IMAGE, 2), 3).inv(torch.zeros(2, *IMAGE)),
            ValueError,
            r"Patchify returned events of shape \(6, 12\), expected 3 dim.*latent_event_dim",
        ),
    ],
)
def test_wrong_use_is_one_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_nflows_is_imported_where_it_is_used():
    program = """
import sys
import torch
import mixer_bijectors as mb
mb.check_bijection(mb.accelerate_sampling(mb.Autoregressive(3)), torch.randn(4, 3))
assert "nflows" not in sys.modules
mb.to_nflows(mb.LULinear(3))
assert "nflows" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
