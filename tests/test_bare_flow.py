"""Models of normflows train, are tested, sample and embed by the same tools as others."""

import normflows as nf
import numpy as np
import pytest
import torch
from tiny_runs import make_trainer
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.images import bits_per_dim
from mixer_bijectors.models.bare_flow import as_density_model
from mixer_bijectors.train import DensityEstimation, Digits, Pictures


def glow(class_cond: bool) -> nf.MultiscaleFlow:
    """Two levels of normflows' Glow for images of 1 x 8 x 8."""
    bases, merges, flows = [], [], []
    for level, (channels, side) in enumerate([(8, 2), (2, 4)]):
        blocks = [nf.flows.GlowBlock(8 if level == 0 else 4, 8) for _ in range(2)]
        flows.append([*blocks, nf.flows.Squeeze()])
        shape = (channels, side, side)
        make = nf.distributions.ClassCondDiagGaussian if class_cond else None
        bases.append(make(shape, 10) if make else nf.distributions.DiagGaussian(shape))
    merges.append(nf.flows.Merge())
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=class_cond)


def plain() -> nf.NormalizingFlow:
    base = nf.distributions.DiagGaussian((4, 16))
    return nf.NormalizingFlow(
        base, [mb.ChannelMixing(mb.Coupling(16)), mb.Patchify((1, 8, 8), 4)]
    )


MODELS = {
    "NormalizingFlow": plain,
    "Glow": lambda: glow(False),
    "class-conditional Glow": lambda: glow(True),
}


@pytest.mark.parametrize("name", MODELS)
def test_trains_and_does_all_tasks(name, tmp_path):
    torch.manual_seed(0)
    module = DensityEstimation(MODELS[name](), warmup_steps=5, label_dropout=0.1)
    pictures = Pictures(num_samples=10)
    trainer = make_trainer(max_steps=30, default_root_dir=tmp_path, callbacks=[pictures])
    trainer.fit(module, datamodule=Digits(64))
    assert (tmp_path / "samples.png").exists() and (tmp_path / "reconstructions.png").exists()
    (metrics,) = trainer.test(module, Digits(64), verbose=False)
    assert metrics["test/bits_per_dim"] < 8.5
    assert metrics["test/reconstruction_error"] < 1e-3
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    given = {"model": module, "ckpt_path": str(tmp_path / "last.ckpt")}
    tasks = make_trainer(default_root_dir=tmp_path)
    tasks.sample(num_samples=10, temperature=0.7, **given)
    tasks.embed(datamodule=Digits(64), **given)
    tasks.reconstruct(datamodule=Digits(64), **given)
    tasks.score(datamodule=Digits(64), **given)
    results = tmp_path / "results"
    drawn = np.load(results / "samples.npz")
    assert drawn["images"].shape == (10, 1, 8, 8) and np.isfinite(drawn["log_prob"]).all()
    assert ("labels" in drawn) == ("class" in name)
    assert np.load(results / "embeddings.npz")["embeddings"].shape == (
        len(Digits.splits()["test"]),
        64,
    )


def test_the_loss_of_a_class_conditional_glow_is_by_its_labels():
    torch.manual_seed(0)
    flow = glow(True)
    x, labels = 2 * torch.rand(6, 1, 8, 8) - 1, torch.tensor([0, 9, 3, -1, 2, 2])
    with torch.no_grad():
        flow.log_prob(x, labels.clamp(min=0))  # initialises ActNorm
        for base in flow.q0:
            base.loc.normal_()
    model = as_density_model(flow.eval())
    loss, metrics = model.loss_and_metrics(x, labels)
    known = labels >= 0
    want = bits_per_dim(flow.log_prob(x[known], labels[known]), (1, 8, 8))
    assert_close(metrics["bits_per_dim"][known], want)
    assert_close(loss, metrics["bits_per_dim"].mean())
    assert model.label_range == range(-1, 10)
    z = model.inverse(x, labels)
    assert z.shape == (6, 64)
    assert_close(model(z, labels), x, atol=1e-4, rtol=0)
    assert_close(model.embed(x, labels), z)


def test_a_temperature_is_that_of_all_levels():
    flow = glow(False).eval()
    model = as_density_model(flow)
    torch.manual_seed(1)
    got = model.sample(4, temperature=0.5)
    torch.manual_seed(1)
    assert_close(got, flow.sample(4, temperature=0.5))
    assert all(base.temperature is None for base in flow.q0)
    with pytest.raises(ValueError, match="MultiscaleFlow: temperature must be positive"):
        model.sample(4, temperature=-1.0)


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.Linear(2, 2),
        nf.NormalizingFlow,
        nf.NormalizingFlowVAE(nf.distributions.DiagGaussian(2)),
        nf.ClassCondFlow(nf.distributions.ClassCondDiagGaussian((1, 8, 8), 10), []),
    ],
    ids=["module", "class", "VAE", "ClassCondFlow"],
)
def test_other_modules_are_no_models(model):
    kind = "type" if isinstance(model, type) else type(model).__name__
    with pytest.raises(TypeError, match=f"{kind} is no model that can be trained"):
        DensityEstimation(model)


def test_all_levels_are_for_the_same_classes():
    flow = glow(True)
    flow.q0[0] = nf.distributions.DiagGaussian((8, 2, 2))
    assert as_density_model(flow).label_range == range(10)
    flow.q0[0] = nf.distributions.ClassCondDiagGaussian((8, 2, 2), 5)
    with pytest.raises(ValueError, match="different numbers of classes, 5, 10"):
        as_density_model(flow)


class Mine(mb.MixerFlow):
    """A model of a user's, whose results are as `spoil` makes them."""

    spoil = staticmethod(lambda loss, bits: (loss, {"bits_per_dim": bits}))

    def loss_and_metrics(self, x, labels=None):
        loss, metrics = super().loss_and_metrics(x, labels)
        return type(self).spoil(loss, metrics["bits_per_dim"])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda loss, bits: (bits, {"bits_per_dim": bits}), "loss must be a scalar, got shape"),
        (lambda loss, bits: (loss, {"bits": bits}), "bits_per_dim must be .*got none"),
        (lambda loss, bits: (loss, {"bits_per_dim": loss}), r"of shape \(64,\), .*got \(\)"),
        (
            lambda loss, bits: (loss, {"bits_per_dim": bits[:, None]}),
            r"bits_per_dim must be of shape \(64,\), .*got \(64, 1\)",
        ),
    ],
)
def test_results_of_other_shapes_are_refused(spoil, told, tmp_path):
    kind = type("Spoilt", (Mine,), {"spoil": staticmethod(spoil)})
    module = DensityEstimation(kind((1, 8, 8), 4, 1, shift_every=0, hidden_features=8))
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    with pytest.raises(RuntimeError, match=f"Spoilt: the .*{told}"):
        trainer.fit(module, datamodule=Digits(64))


def test_models_of_images_answer_for_themselves():
    model = mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0, hidden_features=8)
    assert as_density_model(model) is model
    x = 2 * torch.rand(4, 1, 8, 8) - 1
    bits = bits_per_dim(model.log_prob(x), (1, 8, 8))
    assert_close(model.loss(x), bits.mean())
    assert_close(model.metrics(x), {"bits_per_dim": bits})
    assert model.loss(x).requires_grad and not model.metrics(x)["bits_per_dim"].requires_grad
