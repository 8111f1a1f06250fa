"""Continuous-time flows."""

import normflows as nf
import pytest
import torch
from conftest import train
from random_layers import randomised_in_double as randomised
from torch.testing import assert_close

import mixer_bijectors as mb


class TestContinuousFlow:
    @pytest.mark.parametrize(
        "run",
        [
            lambda layer, x: torch.func.vmap(lambda row: layer.inverse(row[None])[0])(x),
            lambda layer, x: torch.func.grad(lambda rows: layer.inverse(rows)[0].sum())(x),
            lambda layer, x: layer.to("meta").inverse(x.to("meta")),
        ],
        ids=["vmap", "grad", "meta"],
    )
    def test_says_what_its_solver_cannot_do(self, run):
        with pytest.raises(RuntimeError, match=r"^ContinuousFlow: cannot be traced"):
            run(mb.ContinuousFlow(3, hidden_features=8).eval(), torch.randn(2, 3))

    @pytest.mark.parametrize(("std", "error"), [(0.1, 3e-6), (0.2, 5e-5)])
    def test_round_trips_at_the_default_tolerance(self, std, error):
        layer = randomised(mb.ContinuousFlow(6), std).eval().float()
        x = torch.randn(200, 6)
        with torch.no_grad():
            z, log_det = layer.inverse(x)
            again, log_det_again = layer(z)
        assert_close(again, x, atol=error, rtol=0)
        assert_close(log_det_again, -log_det, atol=error, rtol=0)

    def test_errors_of_a_sample_do_not_hide_in_the_batch(self):
        layer = randomised(mb.ContinuousFlow(3, hidden_features=8), 0.4).eval()
        x = torch.zeros(500, 3).double()
        x[7] = torch.tensor([2.0, -1.0, 3.0])
        with torch.no_grad():
            alone, among = layer.inverse(x[7:8]), layer.inverse(x)
        assert_close(among[0][7], alone[0][0], atol=2e-5, rtol=0)
        assert_close(among[1][7], alone[1][0], atol=2e-5, rtol=0)

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
