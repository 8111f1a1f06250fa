"""Layers in nflows, torch.distributions, zuko and pyro, and transforms of nflows in ours."""

import copy
import functools
import pickle
import subprocess
import sys

import nflows.distributions
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import pyro
import pytest
import torch
import zuko
from conftest import IMAGE
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import (
    ComposeTransform,
    IndependentTransform,
    SigmoidTransform,
)
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


class TestBackwards:
    """A flow among transforms of nflows, or one of these among flows, is refused."""

    @pytest.mark.parametrize(
        "make", [lambda: mb.Coupling(6), lambda: nf.flows.LULinearPermute(6)]
    )
    @pytest.mark.parametrize(
        "place",
        [
            lambda layer: nt.CompositeTransform([nt.ReversePermutation(6), layer]),
            lambda layer: nt.InverseTransform(layer),
            lambda layer: nflows.flows.Flow(layer, nflows.distributions.StandardNormal([6])),
            lambda layer: nt.MultiscaleCompositeTransform(1).add_transform(layer, (6,)),
            lambda layer: type("Mine", (nt.CompositeTransform,), {})([layer]),
            lambda layer: nt.InverseTransform(torch.compile(layer)),
        ],
        ids=["Composite", "Inverse", "Flow", "Multiscale", "subclass", "compiled"],
    )
    def test_flows_in_nflows(self, make, place):
        layer = make()
        with pytest.raises(
            TypeError, match=f"of nflows would .* {type(layer).__name__} .*to_nf"
        ):
            place(layer)
        place(mb.to_nflows(layer))

    @pytest.mark.parametrize(
        "place",
        [
            lambda layer: nf.NormalizingFlow(nf.distributions.DiagGaussian(6), [layer]),
            lambda layer: nf.flows.Composite([layer]),
            lambda layer: nf.flows.Reverse(layer),
            lambda layer: nf.NormalizingFlow(nf.distributions.DiagGaussian(6), []).flows.append(
                layer
            ),
        ],
        ids=["NormalizingFlow", "Composite", "Reverse", "append"],
    )
    def test_transforms_of_nflows_in_normflows(self, place):
        transform = nt.LULinear(6)
        with pytest.raises(TypeError, match=r"of normflows would run LULinear .*from_nflows"):
            place(transform)
        place(mb.from_nflows(transform))

    @pytest.mark.parametrize(
        "copied",
        [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_lists_of_copies_are_watched(self, copied):
        composite = nt.CompositeTransform([nt.ReversePermutation(6)])
        multiscale = nt.MultiscaleCompositeTransform(1)
        model = nf.NormalizingFlow(nf.distributions.DiagGaussian(6), [mb.LULinear(6)])
        averaged = torch.optim.swa_utils.AveragedModel(composite).module
        layer, transform = mb.Coupling(6), nt.LULinear(6)
        for place in (
            lambda: copied(composite)._transforms.append(layer),
            lambda: copied(averaged)._transforms.extend([layer]),
            lambda: copied(composite)._transforms.__setitem__(0, layer),
            lambda: copied(copied(multiscale)).add_transform(layer, (6,)),
            lambda: copied(model).flows.append(transform),
            lambda: copied(mb.Chain([layer])).flows.append(transform),
            lambda: setattr(copied(mb.ChannelMixing(layer)), "flow", transform),
        ):
            with pytest.raises(TypeError, match=r"would run (Coupling|LULinear) backwards"):
                place()

    def test_who_has_a_method_of_its_own_may_hold_what_it_likes(self):
        class Mine(nt.Transform):
            def __init__(self, flow):
                super().__init__()
                self.flow, self.flows = flow, nn.ModuleList([flow])

            def forward(self, inputs, context=None):
                return self.flow.inverse(inputs)

        layer, x = mb.Coupling(6), torch.randn(4, 6)
        composite = nt.CompositeTransform([Mine(layer), mb.to_nflows(layer)])
        for other in (
            copy.deepcopy(composite),
            pickle.loads(pickle.dumps(mb.to_nflows(layer))),
        ):
            other(x)

    @pytest.mark.parametrize(
        ("base", "arguments", "method", "child"),
        [
            (nf.flows.Flow, (), "inverse", nt.ReversePermutation(6)),
            (
                nf.NormalizingFlow,
                (nf.distributions.DiagGaussian(6), []),
                "log_prob",
                nt.ReversePermutation(6),
            ),
            (
                nflows.flows.Flow,
                (nt.LULinear(6), nflows.distributions.StandardNormal([6])),
                "log_prob",
                mb.LULinear(6),
            ),
        ],
    )
    def test_one_method_of_its_own_is_enough(self, base, arguments, method, child):
        mine = type("Mine", (base,), {method: lambda self, x: self.child(x)})(*arguments)
        mine.child = child
        assert mine.child is child


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
            lambda layer, x: layer.flows[0].net.final.weight.data.add_(0.1),
            lambda layer, x: x.mul_(2),
        ],
        ids=["step", "load", "data", "input"],
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
            x = model.sample((5,))
            change(layer, x)  # and nobody has asked for the density before
            assert_close(model.log_prob(x), fresh.log_prob(x), atol=1e-5, rtol=1e-5)
        weight = layer.flows[0].net.final.weight
        (gradient,) = torch.autograd.grad(model.log_prob(x).sum(), weight)
        assert gradient.abs().sum() > 0
        copy.deepcopy(transform)(x)

    @pytest.mark.parametrize("cache_size", [0, 1])
    def test_a_context_that_changed_is_not_remembered(self, base, cache_size):
        layer, context = mb.Coupling(6, context_features=2), torch.randn(5, 2)
        nn.init.normal_(layer.net.final.weight, std=0.1)
        build = functools.partial(mb.to_torch_transform, layer, context=context)
        model = TransformedDistribution(base, build(cache_size=cache_size))
        with torch.no_grad():
            x = model.sample()
            context.mul_(2)
            fresh = TransformedDistribution(base, build()).log_prob(x)
            assert_close(model.log_prob(x), fresh)

    @pytest.mark.parametrize("cache_size", [0, 1])
    def test_densities_can_be_differentiated_twice_in_a_row(self, layer, base, cache_size):
        model = TransformedDistribution(
            base, mb.to_torch_transform(layer, cache_size=cache_size)
        )
        x = torch.randn(5, 6)
        for _ in range(2):
            model.log_prob(x).sum().backward()

    def test_a_density_is_one_pass(self, layer, base):
        model = TransformedDistribution(base, mb.to_torch_transform(layer))
        calls = []
        layer.flows[0].net.register_forward_hook(lambda *_: calls.append(1))
        model.log_prob(torch.randn(5, 6))
        assert len(calls) == 1

    @pytest.mark.parametrize("cache_size", [0, 1])
    def test_inference_mode(self, layer, base, cache_size):
        model = TransformedDistribution(
            base, mb.to_torch_transform(layer, cache_size=cache_size)
        )
        x = torch.randn(5, 6)
        with torch.no_grad():
            want = model.log_prob(x)
        with torch.inference_mode():
            for _ in range(2):
                samples = model.sample((5,))
                assert_close(model.log_prob(samples), model.log_prob(samples.clone()))
                assert_close(model.log_prob(x), want)
        log_prob = model.log_prob(x)
        assert_close(log_prob, want)
        log_prob.sum().backward()

    @pytest.mark.parametrize("cache_size", [0, 1])
    def test_transforms_of_functions(self, layer, base, cache_size):
        layer, x = layer.double(), torch.randn(4, 6, dtype=torch.float64)
        base = Independent(Normal(torch.zeros(6).double(), torch.ones(6).double()), 1)
        model = TransformedDistribution(
            base, mb.to_torch_transform(layer, cache_size=cache_size)
        )
        want = model.log_prob(x).detach()
        jacobian, hessian = (
            torch.stack([of(model.log_prob, one) for one in x])
            for of in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian)
        )
        for _ in range(2):
            assert_close(torch.func.vmap(model.log_prob)(x), want)
            for of in (torch.func.jacrev, torch.func.jacfwd):
                assert_close(torch.func.vmap(of(model.log_prob))(x), jacobian)
            assert_close(torch.func.vmap(torch.func.hessian(model.log_prob))(x), hessian)
            assert_close(model.log_prob(x), want)
        copied = copy.deepcopy(model)
        assert_close(copied.log_prob(x), want)

    @pytest.mark.slow
    def test_compiled_densities(self, layer, base):
        model = TransformedDistribution(base, mb.to_torch_transform(layer), validate_args=False)
        compiled = torch.compile(model.log_prob, backend="eager", fullgraph=True)
        for x in torch.randn(5, 6), torch.randn(7, 6):
            assert_close(compiled(x), model.log_prob(x))

    def test_transforms_of_one_flow_are_equal(self, layer):
        context = torch.randn(1, 2)
        conditional = mb.Coupling(6, context_features=2)
        make = mb.to_torch_transform
        same = [
            (make(layer), make(layer, cache_size=1)),
            (make(layer).inv, make(layer).inv),
            (make(conditional, context=context), make(conditional, context=context.clone())),
        ]
        different = [
            (make(layer), make(copy.deepcopy(layer))),
            (make(layer), make(layer).inv),
            (make(layer), make(layer, 2)),
            (make(layer), layer),
            (make(conditional, context=context), make(conditional, context=context + 1)),
            (make(conditional, context=context), make(conditional)),
        ]
        assert all(a == b and hash(a) == hash(b) for a, b in same)
        assert all(a != b for a, b in different)

    def test_copies(self, layer):
        transform, x = mb.to_torch_transform(layer, cache_size=1), torch.randn(5, 6)
        y = transform(x)
        for other in (transform, transform.inv):
            assert other.inv.inv is other
            for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
                assert copied.inv.inv is copied
                assert_close(copied(x), other(x))
                assert copied.double()(x.double()).dtype == torch.float64
        assert transform(x) is y or torch.equal(transform(x), y)

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
        assert model.expand((7,)).sample((2,)).shape == (2, 7, *IMAGE)
        assert model.log_prob(model.sample((5,))).shape == (5,)
        assert transform.inverse_shape((9, *IMAGE)) == (9, 6, 12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("on", ["cpu", "meta"])
    @pytest.mark.parametrize(
        ("make", "latent", "event"),
        [
            (lambda: mb.Chain([_lifted_actnorm(), mb.Patchify(IMAGE, 2)]), (6, 12), IMAGE),
            (lambda: nf.flows.Reverse(mb.Patchify(IMAGE, 2)), IMAGE, (6, 12)),
            (lambda: nf.flows.Squeeze(), (4, 2, 2), (1, 4, 4)),
            (
                lambda: mb.Chain([nf.flows.ActNorm((4, 2, 2)), nf.flows.Squeeze()]),
                (4, 2, 2),
                (1, 4, 4),
            ),
            (lambda: mb.Chain([mb.from_nflows(nt.Logit()), mb.LULinear(3)]), (3,), (3,)),
        ],
        ids=["Patchify", "Reverse", "Squeeze", "normflows", "vectors"],
    )
    def test_shapes_leave_no_trace(self, make, latent, event, dtype, on):
        flow = make().to(on, dtype)
        if on == "meta" and any(isinstance(m, nf.flows.ActNorm) for m in flow.modules()):
            pytest.skip("looks at a buffer in its forward")
        calls = []
        for module in flow.modules():
            module.register_forward_hook(lambda *_: calls.append(1))
        state = {name: value.clone() for name, value in flow.state_dict().items()}
        random = torch.get_rng_state()
        transform = mb.to_torch_transform(flow, len(event), latent_event_dim=len(latent))
        assert transform.forward_shape(torch.Size((5, 2, *latent))) == (5, 2, *event)
        assert transform.inverse_shape(torch.Size((5, 2, *event))) == (5, 2, *latent)
        base = Independent(
            Normal(torch.zeros(latent, device=on, dtype=dtype), 1.0, validate_args=False),
            len(latent),
            validate_args=False,
        )
        assert TransformedDistribution(base, transform).event_shape == event
        assert not calls
        assert all(module.training for module in flow.modules())
        assert torch.equal(torch.get_rng_state(), random)
        if on == "cpu":
            assert_close(flow.state_dict(), state, rtol=0, atol=0)

    def test_declared_shapes_are_taken_without_a_run(self):
        class Declared(nf.flows.Flow):
            latent_shape, event_shape = (None, 12), IMAGE

        transform = mb.to_torch_transform(Declared(), 3, latent_event_dim=2)
        with pytest.raises(
            ValueError, match=r"latents of shape \(batch, any, 12\), got .*\(6, 11\)"
        ):
            transform.forward_shape(torch.Size((6, 11)))
        Declared.latent_shape = (6, 12)
        assert transform.forward_shape(torch.Size((9, 6, 12))) == (9, *IMAGE)
        assert transform.inverse_shape(torch.Size((9, *IMAGE))) == (9, 6, 12)
        with pytest.raises(ValueError, match=r"takes data of shape \(batch, "):
            transform.inverse_shape(torch.Size((9, 1, 2, 3)))

    def test_in_compositions(self, layer, base):
        transform, x = mb.to_torch_transform(layer), torch.rand(4, 3, 6)
        squash = SigmoidTransform()
        model = TransformedDistribution(base, [transform, squash])
        y = squash.inv(x)
        want = TransformedDistribution(base, transform).log_prob(y)
        want = want - squash.log_abs_det_jacobian(y, x).sum(-1)
        assert_close(model.log_prob(x), want)
        there_and_back = ComposeTransform([transform, transform.inv])
        assert_close(there_and_back(x), x, atol=1e-5, rtol=1e-5)
        assert_close(there_and_back.inv(x), x, atol=1e-5, rtol=1e-5)
        batched = IndependentTransform(transform, 1)
        assert_close(
            batched.log_abs_det_jacobian(x, batched(x)),
            layer(x.flatten(0, 1))[1].view(4, 3).sum(1),
        )
        with pytest.raises(NotImplementedError, match="no cdf"):
            TransformedDistribution(base, transform).icdf(x)

    def test_actnorm_starts_at_its_first_batch_of_data(self):
        flow = mb.Chain([_lifted_actnorm(), mb.Patchify(IMAGE, 2)])
        base = Independent(Normal(torch.zeros(6, 12), torch.ones(6, 12)), 2)
        transform = mb.to_torch_transform(flow, 3, latent_event_dim=2)
        model = TransformedDistribution(base, transform)
        x = 3 + 2 * torch.randn(64, *IMAGE)
        model.log_prob(x)
        z = transform.inv(x)
        assert_close(z.mean((0, 1)), torch.zeros(12), atol=1e-4, rtol=0)
        assert_close(z.var((0, 1), correction=0), torch.ones(12), atol=1e-3, rtol=0)

    def test_the_batch_of_the_context_is_that_of_the_distribution(self, base):
        layer, context = mb.Coupling(6, context_features=2), torch.randn(3, 2)
        model = TransformedDistribution(base, mb.to_torch_transform(layer, context=context))
        assert model.batch_shape == (3,) and model.event_shape == (6,)
        assert model.sample((4,)).shape == (4, 3, 6)
        assert model.log_prob(torch.randn(6)).shape == (3,)

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

    def test_as_a_guide_of_pyro(self):
        def model():
            x = pyro.sample("x", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = x[..., 0] ** 2 - x[..., 1]
            pyro.sample("y", pyro.distributions.Normal(mean, 0.3), obs=torch.tensor(1.5))

        def layers(features):
            couplings = [mb.Coupling(features, hidden_features=32, reverse=r) for r in (0, 1)]
            return mb.Chain(couplings)

        def theirs(features):
            first, second = (
                pyro.distributions.transforms.affine_coupling(features, [32, 32]) for _ in "12"
            )
            swap = pyro.distributions.transforms.permute(features, torch.tensor([1, 0]))
            return pyro.distributions.transforms.ComposeTransformModule([first, swap, second])

        def loss_after_fit(init):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            guide = AutoNormalizingFlow(model, init)
            elbo = Trace_ELBO(num_particles=16, vectorize_particles=True)
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.005}), elbo)
            losses = [svi.step() for _ in range(100)]
            names = set(pyro.get_param_store().keys())
            assert {
                f"AutoNormalizingFlow.{n}".replace("transform.", "transform$$$")
                for n, _ in guide.named_parameters()
            } <= names
            return sum(losses[-20:]) / 20

        want = loss_after_fit(theirs)
        inits = (
            lambda features: mb.to_torch_transform(layers(features), cache_size=1),
            lambda features: mb.to_torch_transform(layers(features)).inv,
            lambda features: pyro.distributions.transforms.ComposeTransformModule(
                [mb.to_torch_transform(flow) for flow in layers(features).flows]
            ),
        )
        for init in inits:
            assert loss_after_fit(init) < want + 0.5
        pyro.clear_param_store()


def _lifted_actnorm():
    return mb.ChannelMixing(mb.ActNorm(12))


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
