"""Learned noise of dequantisation."""

import copy

import normflows as nf
import pytest
import torch
from commands import FLOW, QUIET, call
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.images import bits_per_dim, dequantize, levels_and_noise


def mixer(**options):
    return mb.MixerFlow((1, 8, 8), 2, num_layers=2, hidden_features=8, shift_every=0, **options)


def small(spread=0.2, flow=None):
    """A model whose parameters are not zero, since zeros hide mistakes."""
    model = mb.VariationalDequantization(flow or mixer(), hidden_features=8).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def integers(batch=5):
    return torch.randint(256, (batch, 1, 8, 8), dtype=torch.uint8)


def test_starts_as_uniform_dequantisation():
    flow = mixer().eval()
    model = mb.VariationalDequantization(flow, hidden_features=8).eval()
    x = dequantize(integers())
    noisy, log_det = model.dequantize(x)
    assert_close(noisy, x, atol=1e-6, rtol=0)
    assert_close(log_det, torch.zeros(5), atol=1e-4, rtol=0)
    assert_close(model.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_stays_in_its_level(dtype):
    model = small(spread=2.0).to(dtype)
    x = dequantize(integers(), dtype=dtype)
    noisy, log_det = model.dequantize(x)
    assert noisy.dtype == log_det.dtype == dtype
    assert not torch.equal(noisy, x) and noisy.min() >= -1 and log_det.isfinite().all()
    # An edge of the cube belongs to both levels.
    inside = (noisy + 1) * 128 - levels_and_noise(x)[0]
    assert inside.min() >= -1e-4 and inside.max() <= 1 + 1e-4


def test_the_log_det_is_that_of_the_noise():
    model = small().double()
    x = dequantize(integers(1), dtype=torch.float64)

    def move(x):
        return model.dequantize(x)[0]

    jacobian = torch.autograd.functional.jacobian(move, x).view(64, 64)
    # The levels are constants, so that the identity through them counts for nothing.
    assert_close(model.dequantize(x)[1], torch.linalg.slogdet(jacobian)[1][None])


def test_training_tightens_the_bound():
    torch.manual_seed(0)
    flow = mixer().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = mb.VariationalDequantization(flow, hidden_features=16)
    x = 120 + integers(64) // 16
    optimizer = torch.optim.Adam(model.noise_flow.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


def test_loss_metrics_samples_and_embeddings():
    flow = mixer(num_classes=3)
    model = small(flow=flow)
    x, labels = dequantize(integers()), torch.arange(5) % 3
    bits = bits_per_dim(model.log_prob(x, labels), (1, 8, 8))
    assert_close(model.loss(x, labels), bits.mean())
    assert_close(model.metrics(x, labels)["bits_per_dim"], bits.detach())
    assert model.label_range == flow.label_range and model.density is flow
    assert_close(model.embed(x, labels), flow.embed(x, labels))
    torch.manual_seed(0)
    samples = model.sample(5, labels, temperature=0.7)
    torch.manual_seed(0)
    assert_close(samples, flow.sample(5, labels, temperature=0.7))


def test_takes_integers_and_models_of_normflows():
    base = nf.distributions.DiagGaussian((1, 8, 8))
    flow = nf.NormalizingFlow(base, [nf.flows.ActNorm((1, 1, 1))])
    model = mb.VariationalDequantization(flow, image_shape=(1, 8, 8), hidden_features=8)
    assert model.log_prob(integers()).shape == (5,)
    model.loss(dequantize(integers())).backward()


def test_state_survives_and_no_device():
    model = small()
    x = dequantize(integers())
    loaded = mb.VariationalDequantization(mixer(), hidden_features=8).eval()
    loaded.load_state_dict(model.state_dict())
    for other in (loaded, copy.deepcopy(model)):
        assert_close(other.log_prob(x), model.log_prob(x), atol=0, rtol=0)
    assert model.to("meta").log_prob(x.to("meta")).shape == (5,)


@pytest.mark.slow
def test_compiles_to_one_graph():
    model, x = small(), dequantize(integers())
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), model.loss(x), atol=1e-4, rtol=1e-4)


def bare():
    return nf.NormalizingFlow(nf.distributions.DiagGaussian((1, 8, 8)), [])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: (mb.HybridClassifier(mixer(), 3, weight=1.0), {}), TypeError, "images alone"),
        (lambda: (bare(), {}), ValueError, "pass image_shape"),
        (lambda: (mixer(), {"num_layers": 0}), ValueError, "num_layers must be at least 1"),
        (lambda: (mixer(), {"patch_size": 3}), ValueError, "not divisible"),
    ],
)
def test_arguments(build, error, message):
    flow, options = build()
    with pytest.raises(error, match=message):
        mb.VariationalDequantization(flow, **options)


@pytest.mark.slow
def test_the_command_trains_it_and_bounds_its_bits(tmp_path, capsys):
    inner = {"image_shape": "[1, 8, 8]", "patch_size": 4, "num_layers": 1, "shift_every": 0}
    inner["hidden_features"] = 8
    options = [part for k, v in inner.items() for part in (f"{FLOW}flow.init_args.{k}", v)]
    call(
        *("fit", *QUIET, "--trainer.default_root_dir", tmp_path, "--trainer.max_steps", 4),
        *("--model.flow", "mixer_bijectors.VariationalDequantization"),
        *(f"{FLOW}hidden_features", 8, f"{FLOW}flow", "mixer_bijectors.MixerFlow", *options),
        *("--data", "mixer_bijectors.train.Digits", "--data.init_args.batch_size", 256),
    )
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    call("test", "--ckpt_path", last, *QUIET, "--importance-samples", 3)
    assert "test/importance_weighted_bits" in capsys.readouterr().out
