"""Flows as transforms of torch.distributions, of zuko and of pyro."""

import copy
import functools
import pickle

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
    def test_compiled_densities(self, layer):
        # Where pyro is imported, `Independent` looks at values too.
        unchecked = {"validate_args": False}
        base = Independent(Normal(torch.zeros(6), torch.ones(6), **unchecked), 1, **unchecked)
        model = TransformedDistribution(base, mb.to_torch_transform(layer), **unchecked)
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
