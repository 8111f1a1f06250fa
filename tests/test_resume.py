"""A run that is cut off and resumed ends with the same weights, to the last bit."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import mixer_bijectors as mb
from mixer_bijectors.train import AtomicCheckpointIO, DensityEstimation, ImageDataModule
from mixer_bijectors.train.data import TensorSource
from mixer_bijectors.train.logs import ResumableCSVLogger

STEPS = 12


class Noise(ImageDataModule):
    """A few images, in epochs of five batches."""

    def __init__(self, num_workers=0, **options):
        super().__init__(4, num_workers, flip=True, periodic_shift=True, **options)

    def setup(self, stage):
        x = torch.randint(256, (23, 1, 4, 6), generator=torch.Generator().manual_seed(1))
        x = x.to(torch.uint8)
        labels = torch.arange(23) % 3
        self.sources = dict.fromkeys(("train", "val", "test"), TensorSource(x, labels))


def make_flow(kind):
    torch.manual_seed(0)
    if kind == "residual":  # draws random numbers, and is normalised after each step
        return mb.presets.residual((1, 4, 6), 2, 1, hidden_features=8)
    return mb.MixerFlow(
        (1, 4, 6), 2, num_layers=1, shift_every=1, hidden_features=8, num_classes=3
    )


def fit(folder, kind="conditional", ckpt_path=None, num_workers=0, every=1, **options):
    module = DensityEstimation(make_flow(kind), warmup_steps=2, label_dropout=0.3)
    callbacks = [
        ModelCheckpoint(
            folder,
            filename="{step}",
            save_top_k=-1,
            every_n_train_steps=every,
        ),
        ModelCheckpoint(folder, "best", monitor="val/bits_per_dim"),
    ]
    if options.pop("average", False):
        callbacks.append(EMAWeightAveraging(decay=0.9, use_buffers=False))
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=ResumableCSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=Noise(num_workers), ckpt_path=ckpt_path)
    return module


def assert_same(module, other):
    for (name, a), (_, b) in zip(module.state_dict().items(), other.state_dict().items()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": True},
        {"kind": "residual"},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2, "gradient_clip_val": 1.0},
        pytest.param({"num_workers": 2, "average": True}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(map(str, options)) or "plain",
)
def test_resumes_exactly_from_every_step(tmp_path, options):
    seen = fit(tmp_path / "whole", **options)
    for step in range(1, STEPS):
        path = tmp_path / "whole" / f"step={step}.ckpt"
        resumed = fit(tmp_path / f"from-{step}", ckpt_path=path, **options)
        assert_same(resumed, seen)
