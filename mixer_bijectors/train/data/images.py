"""The data module `Images`, which reads folders, data files and the Hugging Face hub."""

import os
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ..io.errors import DataError, ImageError
from ..io.names import printable
from .decode import open_image, resize
from .findings import describe
from .image_data_module import ImageDataModule
from .loading import Found, load_splits
from .split import Item, Split

__all__ = ["Images"]

# The share of training images that is held out for testing where there is no split for it.
_TEST_SHARE = 0.1


class Images(ImageDataModule):
    """Images of any size and format, cut or scaled to one shape; labels if there are any.

    `path` names the first of these that it fits:

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
        image_shape: (channels, height, width) of all images; 1 channel for grey.
        batch_size: images in a batch of one process.
        num_workers: processes that read images, for each process that trains.
        name: configuration of a dataset of the hub that has several.
        train_split: name of the split for training.
        val_split: name of the one for validation, or the share of training images that is held
            out for it, drawn with a seed that is always the same.
        test_split: name of the one for testing, or a share in the same way; by default the
            split `test` or, without one, a tenth. `all` is for all images there are, with
            nothing left to train on.
        resize: `crop` keeps the aspect ratio and cuts off what is too long, `squash` scales
            both sides as the downsampled ImageNet does, see `decode.resize`.
        random_crop: in training, cut at a random place in place of the middle.
        options: `flip`, `permute_seed` and `on_bad_image`, see `ImageDataModule`.

    Raises:
        ValueError: an argument is not one of these.
        DataError: on setup, if there is no such data, no such split, or nothing to read, or if
            it is not clear which images are meant, or which class they are of.
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
        test_split: str | float | None = None,
        resize: Literal["crop", "squash"] = "crop",
        random_crop: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, num_workers, **options)
        if not os.fspath(path):
            raise ValueError("Images: path must name a folder, a file or a dataset, got ''")
        channels, height, width = image_shape
        if channels not in (1, 3) or min(height, width) < 1:
            raise ValueError(
                f"Images: image_shape must be (1 or 3, height, width), got {tuple(image_shape)}"
            )
        self.splits: dict[str, str | float | None] = {"train": train_split}
        self.splits |= {"val": _share(val_split), "test": _share(test_split)}
        for split in ("val", "test"):
            share = self.splits[split]
            if isinstance(share, float) and not 0 < share < 1:
                raise ValueError(
                    f"Images: {split}_split must be a name or from 0 to 1, got {share}"
                )
            if share == train_split != "all":
                raise ValueError(
                    f"Images: {split}_split must not be {share!r}, the images that are trained "
                    "on (train_split); give another split, or a share from 0 to 1"
                )
        if resize not in ("crop", "squash"):
            raise ValueError(f"Images: resize must be 'crop' or 'squash', got {resize!r}")
        self.path = os.fsdecode(path)
        self._is_path = not isinstance(path, str)
        self.image_shape = (channels, height, width)
        self.name = name
        self.resize = resize
        self.random_crop = random_crop

    def prepare_data(self) -> None:
        _ = self._splits  # reading the splits downloads them, in one process of each machine

    def setup(self, stage: str) -> None:
        if hasattr(self, "sources"):
            return
        parts = self._parts()
        if not all(len(images) for images in parts.values()):
            raise DataError(f"{printable(self.path)} holds no images")
        self.sources = {
            split: _DecodedImages(images, self.image_shape, self.resize, self.random_crop)
            for split, images in parts.items()
        }
        if self.trainer is None or self.trainer.is_global_zero:
            counts = {split: len(images) for split, images in parts.items()}
            used = [s for s in self._splits if self._used is None or s in self._used]
            print(describe(self.path, counts, self._splits, used, self._found.left_out))

    def _parts(self) -> dict[str, Split | Subset[Item] | ConcatDataset[Item]]:
        """The images to train, validate and test with."""
        named = self._splits
        if self.splits["test"] == "all":
            return {"test": ConcatDataset(named.values())}
        is_there = "test" in named and self.splits["train"] != "test"
        default = "test" if is_there else _TEST_SHARE
        given = {s: default if part is None else part for s, part in self.splits.items()}
        for split in given.values():
            if isinstance(split, str) and split not in named:
                raise DataError(
                    f"{printable(self.path)} has no split {split!r}, but "
                    f"{', '.join(map(repr, named))}; set train_split, val_split or test_split, "
                    "the last two to a share if need be"
                )
        train = named[str(given["train"])]
        generator = torch.Generator().manual_seed(0)
        # An array, since each worker would copy the memory of a list when it counts references.
        order = array("q", torch.randperm(len(train), generator=generator).tolist())
        parts: dict[str, Split | Subset[Item] | ConcatDataset[Item]] = {}
        for split in ("test", "val"):
            part = given[split]
            if isinstance(part, str):
                parts[split] = named[part]
                continue
            count = max(1, round(part * len(train)))
            if count >= len(order):
                raise DataError(
                    f"{printable(self.path)}: val_split={given['val']!r} and "
                    f"test_split={given['test']!r} leave nothing to train on of the "
                    f"{len(train)} images of {given['train']!r}; give smaller shares, or "
                    "names of splits"
                )
            parts[split], order = Subset(train, order[:count]), order[count:]
        return parts | {"train": Subset(train, order)}

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
        return [s or "test" for s in self.splits.values() if not isinstance(s, float)]


def _share(split: str | float | None) -> str | float | None:
    """A share as a number, also from the text of a command line; a name or None as it is."""
    try:
        return float(split)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return split


class _DecodedImages:
    """Images that are decoded and brought to one shape when they are read."""

    def __init__(
        self,
        images: Split | Subset[Item] | ConcatDataset[Item],
        image_shape: tuple[int, int, int],
        how: Literal["crop", "squash"],
        random_crop: bool,
    ) -> None:
        self.images = images
        self.image_shape = image_shape
        self.how = how
        self.random_crop = random_crop

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, rng: Random | None) -> tuple[Tensor, int | None]:
        item = self.images[index]
        try:
            return torch.from_numpy(self._pixels(item.image, rng)), item.label
        except ImageError as error:
            raise ImageError(f"image {index} ({item.name}): {error}") from error

    def _pixels(
        self, image: bytes | str | NDArray[np.uint8] | None, rng: Random | None
    ) -> NDArray[np.uint8]:
        channels, height, width = self.image_shape
        if image is None:
            raise ImageError("there is nothing in its row")
        if not isinstance(image, np.ndarray):
            decoded = open_image(image, channels)
        elif image.shape == self.image_shape:
            return image
        else:
            decoded = Image.fromarray(image.transpose(1, 2, 0))
            decoded = decoded.convert("L" if channels == 1 else "RGB")
        position = (0.5, 0.5)
        if self.random_crop and rng is not None:
            position = (rng.random(), rng.random())
        return resize(decoded, (height, width), self.how, position)

    def name(self, index: int) -> str:
        """The file of an image, or its number where it has none."""
        return self.images[index].name
