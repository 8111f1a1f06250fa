"""Images from the Hugging Face hub, from folders, and from files of datasets' authors."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..io.errors import DataError, ImageError
from ..io.names import printable
from .batches import Source
from .decode import resize
from .findings import describe
from .image_data_module import ImageDataModule
from .loading import ArraySplit, Found, Split, load_splits

__all__ = ["Images"]


class Images(ImageDataModule):
    """Images of any size and format, cut or scaled to one shape; labels if there are any.

    What `path` names is, in this order:

    - a folder with the CIFAR-10 or CIFAR-100 pickles, or the npz files of the downsampled
      ImageNet, as their authors publish them, see `formats`;
    - a dataset that Hugging Face's `save_to_disk` wrote;
    - a folder of parquet or arrow files, or a single one;
    - a folder of images, see `folders`: subfolders `train`, `validation` (or `val`) and `test`
      are splits, the first folder below them (or at the top) is the class;
    - a dataset of the Hugging Face hub, such as `cifar10` or `imagenet-1k`.

    `setup` prints in one line what was found and what was left out, and raises where that could
    not have been meant. Images are decoded when they are needed, in `num_workers` processes.

    Args:
        path: see above; a `Path` is never looked up on the hub, nor is a path into a folder
            that exists.
        image_shape: (channels, height, width) that images come out with; 1 channel for grey.
        batch_size: images in a batch of one process.
        num_workers: processes that read images, for each process that trains.
        name: configuration of a dataset of the hub that has several.
        train_split: name of the split for training.
        val_split: name of the one for validation, or the share of training images that is held
            out for it, drawn with a seed that is always the same.
        test_split: name of the one for testing, or a share in the same way; `all` for all
            images there are, with nothing left to train on.
        resize: `crop` keeps the aspect ratio and cuts off what is too long, `squash` scales
            both sides as the downsampled ImageNet does, see `decode.resize`.
        random_crop: in training, cut at a random place in place of the middle.
        flip: mirror half of the training images.
        permute_seed: put the pixels of all images in one random order, drawn with this seed.
        on_bad_image: `raise` or `skip`, see `ImageDataModule`.

    Raises:
        ValueError: an argument that is none of these.
        DataError: on setup, if there is no such data, no such split, or nothing to read, or if
            it cannot be told which images are meant, or which class they are of.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_shape: Sequence[int] = (3, 32, 32),
        batch_size: int = 64,
        num_workers: int = 0,
        *,
        name: str | None = None,
        train_split: str = "train",
        val_split: str | float = 0.05,
        test_split: str | float = "test",
        resize: Literal["crop", "squash"] = "crop",
        random_crop: bool = False,
        flip: bool = False,
        permute_seed: int | None = None,
        on_bad_image: str = "raise",
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            flip=flip,
            permute_seed=permute_seed,
            on_bad_image=on_bad_image,
        )
        if not os.fspath(path):
            raise ValueError("Images: path must name a folder, a file or a dataset, got ''")
        channels, height, width = image_shape
        if channels not in (1, 3) or min(height, width) < 1:
            raise ValueError(
                f"Images: image_shape must be (1 or 3, height, width), got {tuple(image_shape)}"
            )
        val_split, test_split = _share(val_split), _share(test_split)
        for key, share in (("val_split", val_split), ("test_split", test_split)):
            if not isinstance(share, str) and not 0 < share < 1:
                raise ValueError(f"Images: {key} must be a name or from 0 to 1, got {share}")
            if share == train_split != "all":
                raise ValueError(
                    f"Images: {key} must not be {share!r}, the images that are trained on "
                    "(train_split); give another split, or a share from 0 to 1"
                )
        if resize not in ("crop", "squash"):
            raise ValueError(f"Images: resize must be 'crop' or 'squash', got {resize!r}")
        self.path = os.fsdecode(path)
        self._is_path = not isinstance(path, str)
        self.image_shape = (channels, height, width)
        self.name = name
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.resize = resize
        self.random_crop = random_crop

    def prepare_data(self) -> None:
        _ = self._splits  # downloads, in one process on each machine

    def setup(self, stage: str) -> None:
        if hasattr(self, "sources"):
            return
        self.sources = self._find()
        if self.trainer is None or self.trainer.is_global_zero:
            counts = {split: len(source) for split, source in self.sources.items()}
            used = [
                split for split in self._splits if self._used is None or split in self._used
            ]
            print(describe(self.path, counts, self._splits, used, self._found.left_out))

    def _find(self) -> dict[str, Source]:
        """What is read for each split."""
        named = self._splits
        if self.splits["test"] == "all":
            everything = [_Part(images, None) for images in named.values()]
            return {"test": self._source(_Joined(everything))}
        for split in self.splits.values():
            if isinstance(split, str) and split not in named:
                raise DataError(
                    f"{printable(self.path)} has no split {split!r}, but "
                    f"{', '.join(map(repr, named))}; set train_split, val_split or test_split, "
                    "the last two to a share if need be"
                )
        train = named[str(self.splits["train"])]
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        sources = {}
        for split in ("test", "val"):
            given = self.splits[split]
            if isinstance(given, str):
                sources[split] = self._source(_Part(named[given], None))
            else:
                count = max(1, round(given * len(train)))
                if count >= len(order):
                    raise DataError(
                        f"{printable(self.path)}: val_split={self.splits['val']!r} and "
                        f"test_split={self.splits['test']!r} leave nothing to train on of the "
                        f"{len(train)} images of {self.splits['train']!r}; give smaller "
                        "shares, or names of splits"
                    )
                held_out, order = order[:count], order[count:]
                sources[split] = self._source(_Part(train, held_out))
        return sources | {"train": self._source(_Part(train, order))}

    def _source(self, rows: "_Part | _Joined") -> Source:
        if not len(rows):
            raise DataError(f"{printable(self.path)} holds no images")
        return _Resized(rows, self.image_shape, self.resize, self.random_crop)

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the classes by their labels, or None where they have none."""
        found = (images.labels for images in self._splits.values())
        return next((labels.names for labels in found if labels is not None), None)

    @property
    def _splits(self) -> Mapping[str, Split]:
        return self._found.splits

    @cached_property
    def _found(self) -> Found:
        train = str(self.splits["train"])
        return load_splits(self.path, self.name, self._is_path, train, self._used)

    @property
    def _used(self) -> list[str] | None:
        """The splits that images are taken from, None for all."""
        if self.splits["test"] == "all":
            return None
        return [split for split in self.splits.values() if isinstance(split, str)]


def _share(split: str | float) -> str | float:
    """The share that a split is, also as the text of a command line, or its name."""
    try:
        return float(split)
    except ValueError:
        return split


class _Part:
    """Some images of a split, or all of them."""

    def __init__(self, images: Split, order: Sequence[int] | None) -> None:
        self.images = images
        self.order = range(len(images)) if order is None else np.asarray(order)

    def __len__(self) -> int:
        return len(self.order)

    def locate(self, index: int) -> tuple[Split, int]:
        return self.images, int(self.order[index])


class _Joined:
    """All images of several splits."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def locate(self, index: int) -> tuple[Split, int]:
        for part in self.parts:
            if index < len(part):
                return part.locate(index)
            index -= len(part)
        raise IndexError(index)


class _Resized:
    """Images that are decoded and brought to one shape when they are read."""

    def __init__(
        self,
        rows: _Part | _Joined,
        image_shape: tuple[int, int, int],
        how: Literal["crop", "squash"],
        random_crop: bool,
    ) -> None:
        self.rows = rows
        self.image_shape = image_shape
        self.how = how
        self.random_crop = random_crop

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, rng: Random | None) -> tuple[Tensor, int | None]:
        images, row = self.rows.locate(index)
        channels, *size = self.image_shape
        label = None if images.labels is None else int(images.labels.values[row])
        try:
            if isinstance(images, ArraySplit):
                pixels, _ = images.arrays[row]
                if pixels.shape == self.image_shape:
                    return torch.from_numpy(pixels), label
                image = Image.fromarray(pixels.transpose(1, 2, 0))
                image = image.convert("L" if channels == 1 else "RGB")
            else:
                image = images.read(row, channels)
            position = (0.5, 0.5)
            if self.random_crop and rng:
                position = (rng.random(), rng.random())
            pixels = resize(image, (size[0], size[1]), self.how, position)
        except ImageError as error:
            raise ImageError(f"image {index} ({self.name(index)}): {error}") from error
        return torch.from_numpy(pixels), label

    def name(self, index: int) -> str:
        """The file of an image, or its number where it has none."""
        images, row = self.rows.locate(index)
        return images.name(row)
