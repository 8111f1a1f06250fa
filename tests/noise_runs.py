"""Runs on a few images of noise, and whether two of them end alike."""

import torch

import mixer_bijectors as mb
from mixer_bijectors.train import ImageDataModule
from mixer_bijectors.train.data.batches import TensorSource


class Noise(ImageDataModule):
    """A few images, in epochs of five batches."""

    def __init__(self, num_workers=0, **options):
        super().__init__(4, num_workers, flip=True, **options)

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
        (1, 4, 6),
        2,
        num_layers=1,
        shift_every=1,
        hidden_features=8,
        num_classes=3,
        reversible=kind == "reversible",
    )


def assert_same(module, other):
    for (name, a), (_, b) in zip(module.state_dict().items(), other.state_dict().items()):
        assert torch.equal(a, b), name
