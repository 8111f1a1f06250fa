"""Autoregressive layers."""

import math

import normflows as nf
import pytest
import torch
from random_layers import randomised_in_double as randomised
from torch.testing import assert_close

import mixer_bijectors as mb


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("univariate", [mb.Affine(), mb.RationalQuadratic()], ids=repr)
def test_jacobian_is_triangular(univariate, reverse):
    layer = randomised(mb.Autoregressive(5, univariate, hidden_features=16, reverse=reverse))
    x = torch.randn(5, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: layer.inverse(x[None])[0][0])(x)
    before = jacobian.tril(-1) if reverse else jacobian.triu(1)
    assert not before.any()
    after = jacobian.triu(1) if reverse else jacobian.tril(-1)
    assert (after != 0).sum() == 10


def test_density_direction_is_one_pass_and_agrees_with_normflows():
    """Their MAF shifts the other way and scales by a sigmoid, so its shift is compared."""
    layer = randomised(mb.Autoregressive(5, mb.Additive(), hidden_features=16))
    reference = nf.flows.MaskedAffineAutoregressive(5, 16).double()
    weights = dict(layer.net.named_parameters())
    for name, parameter in reference.autoregressive_net.named_parameters():
        if name.startswith("final_layer"):
            torch.nn.init.zeros_(parameter)
            # Scale and shift of each feature in turn; the scale sigmoid(2 + 0) is the same.
            parameter.data[1::2] = weights[name].data
        else:
            parameter.data.copy_(weights[name])
    x = torch.randn(4, 5, dtype=torch.float64)
    calls = []
    layer.net.register_forward_hook(lambda *_: calls.append(1))
    z, _ = layer.inverse(x)
    assert len(calls) == 1
    scale = torch.sigmoid(torch.tensor(2.0, dtype=torch.float64)) + 1e-3
    assert_close(reference(x)[0] - scale * x, x - z)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mb.Autoregressive(9, hidden_features=7), "at least features - 1 = 8, or some"),
        (lambda: mb.Autoregressive(0), "features must be a whole number from 1, got 0"),
        (lambda: mb.ContinuousFlow(2, tol=0.0), "tol must be positive and finite, got 0.0"),
        (
            lambda: mb.ContinuousFlow(2, tol=torch.inf),
            "tol must be positive and finite, got inf",
        ),
    ],
)
def test_impossible_layers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_overflow_of_one_feature_does_not_reach_those_before():
    layer = randomised(mb.Autoregressive(3, hidden_features=8))
    z = torch.tensor([[0.5, torch.inf, 0.5], [0.5, 0.0, 0.5]], dtype=torch.float64)
    x, _ = layer(z)
    assert x[0, 0] == x[1, 0]
    assert x[1].isfinite().all()


class TestContext:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("features", [1, 2, 5])
    def test_reaches_every_feature(self, features, reverse):
        layer = mb.Autoregressive(
            features, hidden_features=16, context_features=3, reverse=reverse
        )
        randomised(layer)
        x = torch.randn(4, features).double()
        context = torch.randn(4, 3).double().requires_grad_()
        z, _ = layer.inverse(x, context)
        for feature in z.unbind(1):
            (gradient,) = torch.autograd.grad(feature.sum(), context, retain_graph=True)
            assert (gradient != 0).all()

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("features", [1, 2])
    def test_a_density_that_depends_on_it_nonlinearly_is_learnt(self, features, reverse):
        """x = sin(3 c) + noise / 5 in every feature, whose mean log-density is known."""
        noise = 0.2
        layer = mb.Autoregressive(
            features, hidden_features=32, context_features=1, reverse=reverse
        )
        best = -features * math.log(noise * math.sqrt(2 * math.pi * math.e))
        optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
        base = torch.distributions.Normal(0.0, 1.0)

        def log_prob():
            context = 2 * torch.rand(256, 1) - 1
            x = (3 * context).sin() + noise * torch.randn(256, features)
            z, log_det = layer.inverse(x, context)
            return (base.log_prob(z).sum(1) + log_det).mean()

        for _ in range(250):
            loss = -log_prob()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            assert abs(sum(log_prob() for _ in range(20)) / 20 - best) < 0.1 * features

    def test_starts_as_the_identity_and_learns_everywhere(self):
        layer = mb.Autoregressive(4, hidden_features=8, context_features=2)
        x, context = torch.randn(5, 4), torch.randn(5, 2)
        assert all(torch.equal(run(x, context)[0], x) for run in (layer, layer.inverse))
        for _ in range(2):
            z, log_det = layer.inverse(x, context)
            (z.square().sum() - log_det.sum()).backward()
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter -= 0.1 * parameter.grad
        assert all(parameter.grad.any() for parameter in layer.parameters())

    def test_checkpoints_without_the_net_of_the_first_feature_load(self):
        layer = randomised(mb.Autoregressive(4, hidden_features=8, context_features=2))
        state = layer.state_dict()
        old = {name: value for name, value in state.items() if not name.startswith("first.")}
        model = mb.Chain([mb.ParallelInverse(layer)])
        model.load_state_dict({f"flows.0.{name}": value for name, value in old.items()})
        x, context = torch.randn(3, 4).double(), torch.randn(3, 2).double()
        z, _ = layer.inverse(x, context)
        plain = mb.Autoregressive(4, hidden_features=8).double()
        del old["net.context_layer.weight"], old["net.context_layer.bias"]
        params = layer.net(x, context).unflatten(1, (4, 2))
        assert_close(z, plain.univariate(x, params, inverse=True)[0])
        with pytest.raises(RuntimeError, match=r"Missing key.*first\.initial\.weight"):
            layer.load_state_dict({})


@pytest.mark.parametrize("context_features", [0, 2])
def test_is_built_on_the_meta_device(context_features):
    def build():
        return mb.Autoregressive(5, hidden_features=8, context_features=context_features)

    with torch.device("meta"):
        layer = build()
    assert all(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
    layer.to_empty(device="cpu")
    other = randomised(build()).float()
    layer.load_state_dict(other.state_dict())
    x, context = torch.randn(3, 5), torch.randn(3, 2)
    for way in ("forward", "inverse"):
        got, want = (getattr(flow, way)(x, context) for flow in (layer, other))
        assert_close(got, want, rtol=0, atol=0)
    assert_close(mb.ParallelInverse(layer)(x, context), other(x, context))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_is_built_in_the_default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        layer = mb.Autoregressive(5, hidden_features=8, context_features=2)
        x, context = torch.randn(3, 5), torch.randn(3, 2)
    finally:
        torch.set_default_dtype(before)
    for run in (layer, layer.inverse, mb.ParallelInverse(layer)):
        assert run(x, context)[0].dtype == dtype


@pytest.mark.parametrize(
    ("wrap", "way", "context_features"),
    [
        (lambda layer: layer, "forward", 0),
        (lambda layer: layer, "inverse", 2),
        (mb.ParallelInverse, "forward", 2),
        (mb.ParallelInverse, "inverse", 0),
    ],
)
def test_compiles_once_for_all_batches(wrap, way, context_features):
    layer = randomised(
        mb.Autoregressive(3, hidden_features=8, context_features=context_features)
    )
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    flow = wrap(layer)
    compiled = torch.compile(
        lambda *inputs: getattr(flow, way)(*inputs),
        dynamic=True,
        fullgraph=True,
        backend=backend,
    )
    for batch in (5, 9, 2):
        y = torch.randn(batch, 3).double().requires_grad_()
        context = torch.randn(batch, context_features).double() if context_features else None
        results = []
        for run in (compiled, getattr(layer, way)):
            x, log_det = run(y, context)
            results.append((x, log_det, *torch.autograd.grad(x.sum() + log_det.sum(), y)))
        assert_close(*results)
    assert len(graphs) == 1


def test_the_former_name_of_a_jacobi_step_warns():
    layer = mb.Autoregressive(3, hidden_features=8)
    z, x = torch.randn(2, 2, 3)
    with pytest.warns(DeprecationWarning, match="is now jacobi_step"):
        former = layer.next(z, x)
    assert_close(former, layer.jacobi_step(z, x))
