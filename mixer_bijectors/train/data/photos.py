"""Ten photographs from the wheels of scikit-image and scikit-learn, cut into patches.

A photo is divided into columns as wide as a patch. Every fifth column is for testing, and of
the others every tenth for validation; training crops come from what is left.
"""

from bisect import bisect_right
from importlib.resources import files
from itertools import accumulate
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Crops", "crop_positions", "grid_patches", "load_photos"]

_PHOTOS = {
    "skimage.data": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "retina.jpg",
        "rocket.jpg",
        "motorcycle_left.png",
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}


def load_photos() -> list[Tensor]:
    """The photographs, each uint8 of shape (3, height, width)."""
    photos = []
    for package, names in _PHOTOS.items():
        for name in names:
            with (files(package) / name).open("rb") as file:
                pixels = np.array(Image.open(file).convert("RGB"))
            photos.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return photos


def column_split(column: int) -> str:
    """Which split a column belongs to: 'train', 'val' or 'test'."""
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
        counts = [
            len(lefts) * max(photo.shape[1] - size + 1, 0)
            for photo, lefts in zip(photos, self.lefts)
        ]
        self.ends = list(accumulate(counts))
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
