"""The base class of data modules of images."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from ..io.errors import DataError
from ..io.names import some
from .batches import Batch, RequestedImages, Source
from .sampling import ResumableLoader, ShardedSampler, run_seed

__all__ = ["ImageDataModule"]


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
        labels: the labels that the model knows, or None if they are not looked at; set by the
            model.
        known_classes: the names of the classes that the model was trained on, by its labels, or
            None if they have none; set by the model.
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
        self.datasets: dict[str, RequestedImages] = {}

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
            train: shuffle the images, and vary them.
            size: number of images, the first of the split; all by default.
            skip: numbers of batches to leave out, if not for training.
        """
        dataset = self._dataset(split)
        trainer = self.trainer
        sampler = ShardedSampler(
            min(len(dataset), size or len(dataset)),
            self.batch_size,
            train=train,
            seed=run_seed(),
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            skip=skip,
        )
        loader = ResumableLoader if train else DataLoader
        return loader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=train,
            collate_fn=dataset.collate,
            # Workers are seeded from this generator, so that the global one stays as it is.
            generator=torch.Generator(),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def teardown(self, stage: str) -> None:
        strategy: Any = self.trainer.strategy if self.trainer else None
        skipped = []
        for split, dataset in self.datasets.items():
            bad = dataset.bad
            if strategy is not None:  # each process counts its own
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

    def _dataset(self, split: str) -> RequestedImages:
        if split not in self.datasets:
            source = self.source(split)
            pixel_order = None
            if self.permute_seed is not None:
                generator = torch.Generator().manual_seed(self.permute_seed)
                _, height, width = source.image_shape
                pixel_order = torch.randperm(height * width, generator=generator)
            self.datasets[split] = RequestedImages(
                source,
                flip=self.flip,
                pixel_order=pixel_order,
                skip_bad=self.on_bad_image == "skip",
                known_labels=self.labels,
                model_labels=self._model_labels(),
            )
        return self.datasets[split]

    def _model_labels(self) -> list[int] | None:
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
