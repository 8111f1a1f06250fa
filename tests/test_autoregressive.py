"""Autoregressive and continuous-time layers."""

import normflows as nf
import pytest
import torch
from conftest import train
from torch.testing import assert_close

import mixer_bijectors as mb


def randomised(layer, std=0.3):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return layer.double()


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
    ours = randomised(mb.Autoregressive(5, mb.Additive(), hidden_features=16))
    theirs = nf.flows.MaskedAffineAutoregressive(5, 16).double()
    weights = dict(ours.net.named_parameters())
    for name, parameter in theirs.autoregressive_net.named_parameters():
        if name.startswith("final_layer"):
            torch.nn.init.zeros_(parameter)
            # Scale and shift of each feature in turn; the scale sigmoid(2 + 0) is the same.
            parameter.data[1::2] = weights[name].data
        else:
            parameter.data.copy_(weights[name])
    x = torch.randn(4, 5, dtype=torch.float64)
    calls = []
    ours.net.register_forward_hook(lambda *_: calls.append(1))
    z, _ = ours.inverse(x)
    assert len(calls) == 1
    scale = torch.sigmoid(torch.tensor(2.0, dtype=torch.float64)) + 1e-3
    assert_close(theirs(x)[0] - scale * x, x - z)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mb.Autoregressive(9, hidden_features=7), "at least features - 1 = 8, or some"),
        (lambda: mb.Autoregressive(0), "features must be at least 1, got 0"),
        (lambda: mb.ContinuousFlow(2, tol=0.0), "tol must be positive, got 0.0"),
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


class TestContinuousFlow:
    def test_integrates_a_linear_velocity_exactly(self):
        """dx/dt = A x has the solution exp(A t) x and the log-determinant tr(A)."""
        a = torch.randn(3, 3, dtype=torch.float64)

        class Linear(torch.nn.Module):
            def __init__(self, *sizes, **options):
                super().__init__()
                self.a = torch.nn.Parameter(a)

            def forward(self, x):
                return x[:, :3] @ self.a.T

        layer = mb.ContinuousFlow(3, net=Linear, tol=1e-10).eval()
        z = torch.randn(6, 3, dtype=torch.float64)
        x, log_det = layer(z)
        assert_close(x, z @ torch.linalg.matrix_exp(a).T, atol=1e-7, rtol=1e-7)
        assert_close(log_det, a.trace().expand(6), atol=1e-7, rtol=1e-7)

    def test_estimate_in_training_is_unbiased(self):
        layer = randomised(mb.ContinuousFlow(4, hidden_features=8, tol=1e-4), std=0.5)
        x = torch.randn(50, 4, dtype=torch.float64)
        z, exact = layer.eval().inverse(x)
        layer.train()
        results = [layer.inverse(x) for _ in range(40)]
        errors = torch.stack([log_det - exact for _, log_det in results])
        assert_close(results[0][0], z, atol=1e-2, rtol=0)
        assert errors.std() > 0.01
        assert errors.mean().abs() < 5 * errors.std() / errors.numel() ** 0.5 + 1e-3

    def test_trains_inside_a_mixing_layer(self):
        layer = mb.ChannelMixing(mb.ContinuousFlow(4, hidden_features=8, tol=1e-3))
        x = torch.randn(8, 3, 4) * torch.tensor([0.2, 1.0, 2.0, 1.0])
        base = nf.distributions.DiagGaussian((3, 4), trainable=False)
        model = nf.NormalizingFlow(base, [layer])
        losses = train(model, x, steps=20, learning_rate=2e-2)
        assert losses[-1] < losses[0] - 0.5

    def test_nan_in_a_context_stays_in_its_sample(self):
        layer = randomised(mb.ContinuousFlow(3, hidden_features=8, context_features=2)).eval()
        x, context = torch.randn(4, 3).double(), torch.randn(4, 2).double()
        want, _ = layer.inverse(x, context)
        context[1] = torch.nan
        z, _ = layer.inverse(x, context)
        assert z[1].isnan().all()
        assert_close(z[2:], want[2:], atol=1e-3, rtol=0)

    def test_a_velocity_too_steep_is_one_sentence(self):
        layer = randomised(mb.ContinuousFlow(3, hidden_features=8), std=3.0).eval()
        with pytest.raises(RuntimeError, match="found no step small enough for tol=1e-06"):
            layer.inverse(torch.tensor([[1e30, 0.0, 0.0], [0.0, 0.0, 0.0]]).double())

    def test_missing_solver_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
        with pytest.raises(ImportError, match=r"pip install 'mixer_bijectors\[ode\]'"):
            mb.ContinuousFlow(3)
