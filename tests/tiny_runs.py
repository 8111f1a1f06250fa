"""Models and data so small that a fit or a task takes half a second."""

import csv

import lightning as L
import numpy as np
import torch
from commands import FLOW, QUIET, call
from PIL import Image

import mixer_bijectors as mb
from mixer_bijectors.train import FlowTrainer, ImageDataModule
from mixer_bijectors.train.data.batches import TensorSource

REPLACE = ("--overwrite", "true")
AVERAGES = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    *("--trainer.callbacks.decay", "0.5", "--trainer.callbacks.use_buffers", "false"),
]
CONDITIONAL = [
    *("--model.flow", "mixer_bijectors.TarFlow", f"{FLOW}image_shape", "[1, 8, 8]"),
    *(f"{FLOW}patch_size", "4", f"{FLOW}channels", "16", f"{FLOW}num_blocks", "2"),
    *(f"{FLOW}layers_per_block", "1", f"{FLOW}head_dim", "8", f"{FLOW}num_classes", "10"),
    *("--model.noise", "0.1", "--model.label_dropout", "0.1"),
    *("--data", "mixer_bijectors.train.Digits", "--data.init_args.batch_size", "256"),
]


def fit(folder, *options):
    root = ("--trainer.default_root_dir", folder, "--trainer.max_steps", 6)
    call("fit", *QUIET, *options, *root, "--model.learning_rate", 0.05)
    return folder / "version_0" / "checkpoints" / "last.ckpt"


def make_flow():
    return mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0, hidden_features=8)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Cut(Exception):  # noqa: N818
    """What ends a task before its results are put together."""


class Constant(ImageDataModule):
    """Images as they are given, in all splits."""

    def __init__(self, images, labels=None):
        super().__init__(8)
        self.sources = dict.fromkeys(("train", "val", "test"), TensorSource(images, labels))


def make_trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return FlowTrainer(accelerator="cpu", **quiet, **options)


IMAGES = torch.rand(8, 1, 8, 8)


class Given(L.LightningDataModule):
    """The same batch in all splits."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def train_dataloader(self):
        return torch.utils.data.DataLoader([self.batch], batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def write_images(folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder
