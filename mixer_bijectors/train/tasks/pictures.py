"""Grids of images as picture files."""

import os
from collections.abc import Sequence

from torch import Tensor

from ...images import save_grid
from ..io.files import atomic_write

__all__ = ["class_columns", "is_picture", "latents_as_images", "write_grid"]

_SMALL = 64


def is_picture(shape: Sequence[int]) -> bool:
    """Whether images of a shape (..., channels, height, width) are grey or of three colours."""
    return shape[-3] in (1, 3)


def class_columns(num_images: int, num_classes: int) -> int | None:
    """Columns of a grid, near a square, such that images of classes in turn line up.

    None where not every class has an image, or the grid would be far from a square.

    Example:
        >>> class_columns(64, 10), class_columns(64, 3), class_columns(9, 10)
        (10, 9, None)
    """
    if not 0 < num_classes <= num_images or num_classes > 4 * num_images**0.5:
        return None
    return num_classes * max(1, round(num_images**0.5 / num_classes))


def latents_as_images(z: Tensor, shape: Sequence[int]) -> Tensor:
    """Latents in the shape of images, three standard deviations from black to white."""
    return (z.reshape(shape) / 3).clamp(-1, 1)


def write_grid(
    path: str | os.PathLike[str], images: Tensor, columns: int | None = None
) -> None:
    """Write images side by side, small ones enlarged by a whole factor."""
    with atomic_write(path) as draft:
        scale = max(1, _SMALL // max(images.shape[-2:]))
        save_grid(draft, images, columns=columns, scale=scale)
