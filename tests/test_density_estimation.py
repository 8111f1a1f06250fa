"""The module that fits a flow to images."""

from pathlib import Path

import lightning as L
import normflows as nf
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, Pictures


def test_noise_and_label_dropout_reach_the_flow():
    flow = mb.TarFlow(
        (1, 8, 8), 4, channels=8, num_blocks=1, layers_per_block=1, head_dim=8, num_classes=3
    )
    module = DensityEstimation(flow, noise=0.3, label_dropout=0.5)
    seen = []
    flow.log_prob = lambda x, labels: seen.append((x, labels)) or x.sum((1, 2, 3))
    module.log = lambda *_, **__: None
    images = torch.full((400, 1, 8, 8), 128, dtype=torch.uint8)
    labels = torch.arange(400) % 3
    module.training_step((images, labels), 0)
    x, given = seen[0]
    dropped = given == -1
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(given[~dropped], labels[~dropped])
    assert abs(x.std().item() - 0.3) < 0.01 and abs(x.mean().item()) < 0.02
    assert torch.equal(module.prepare((images, labels))[1][0], labels)


@pytest.mark.parametrize("options", [{"noise": -0.1}, {"label_dropout": 1.5}])
def test_the_module_refuses(options):
    with pytest.raises(ValueError, match=f"DensityEstimation: {next(iter(options))} must"):
        DensityEstimation(mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0), **options)


class LabelledNoise(L.LightningDataModule):
    """Eight images with labels, for a class-conditional model."""

    def train_dataloader(self):
        x = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
        return DataLoader(TensorDataset(x, torch.arange(8) % 3), batch_size=4)

    val_dataloader = test_dataloader = train_dataloader


KINDS = ["conditional", "float64", "bfloat16", "normflows", "residual", "ffjord"]
PRECISIONS = {"float64": "64-true", "bfloat16": "bf16-mixed"}


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_module_trains_other_models(tmp_path, kind):
    if kind in ("normflows", "compiled"):
        patchify = mb.Patchify((1, 8, 8), 4)
        base = nf.distributions.DiagGaussian((4, 16))
        flow = nf.NormalizingFlow(base, [mb.ChannelMixing(mb.LULinear(16)), patchify])
    elif kind in ("residual", "ffjord"):
        flow = getattr(mb.presets, kind)((1, 8, 8), 2, 1, hidden_features=8)
    else:
        classes = 3 if kind == "conditional" else 0
        flow = mb.MixerFlow((1, 8, 8), 2, num_layers=1, hidden_features=8, num_classes=classes)
    data = LabelledNoise()
    if kind != "conditional":
        images = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
        data.train_dataloader = data.val_dataloader = lambda: DataLoader(images, batch_size=4)
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        precision=PRECISIONS.get(kind, "32-true"),
        default_root_dir=tmp_path,
        logger=CSVLogger(tmp_path),
        callbacks=[Pictures(num_samples=4)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = DensityEstimation(flow, warmup_steps=0, compile=kind == "compiled")
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 3
    assert trainer.callback_metrics["train/bits_per_dim"].isfinite()
    assert (Path(trainer.log_dir) / "reconstructions.png").exists()
