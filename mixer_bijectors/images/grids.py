"""Images side by side."""

import math
import os

import torch
from torch import Tensor

from .levels import quantize

__all__ = ["make_grid", "save_grid"]

_WHITE = 255


def make_grid(x: Tensor, *, columns: int | None = None, gap: int = 2) -> Tensor:
    """Images side by side on white, row by row.

    Args:
        x: images of shape (batch, 1 or 3, height, width), uint8 or floating point in [-1, 1).
        columns: images in a row; by default as many as make the grid square.
        gap: pixels between images.

    Returns:
        One image, uint8 of shape (3, grid height, grid width).

    Raises:
        ValueError: `x` is empty or of another shape.

    Example:
        >>> make_grid(torch.rand(6, 1, 8, 8), columns=3).shape
        torch.Size([3, 22, 32])
    """
    if x.dim() != 4 or x.shape[1] not in (1, 3) or len(x) == 0:
        raise ValueError(
            "make_grid: expected at least one image of shape (batch, 1 or 3, height, width), "
            f"got {tuple(x.shape)}"
        )
    if x.dtype != torch.uint8:
        x = quantize(x.detach())
    batch, _, height, width = x.shape
    columns = columns or math.ceil(math.sqrt(batch))
    rows = math.ceil(batch / columns)
    cell_height, cell_width = height + gap, width + gap
    grid = x.new_full((3, rows * cell_height + gap, columns * cell_width + gap), _WHITE)
    for index, image in enumerate(x):
        top = gap + index // columns * cell_height
        left = gap + index % columns * cell_width
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_grid(
    path: str | os.PathLike[str],
    x: Tensor,
    *,
    columns: int | None = None,
    gap: int = 2,
    scale: int = 1,
) -> None:
    """Write images side by side to a picture file, grey ones in grey.

    Its suffix names the format.

    Args:
        path: file to write.
        x: images, see `make_grid`.
        columns: images in a row; by default as many as make the grid square.
        gap: pixels between images.
        scale: enlarge each pixel to a square of that side.

    Raises:
        ImportError: Pillow is missing; the extra `train` brings it.
        ValueError: `x` is empty or not a batch of images.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'save_grid needs Pillow: pip install "mixer_bijectors[train]"'
        ) from error
    grid = make_grid(x, columns=columns, gap=gap)[: x.shape[1]]  # grey images in one channel
    picture = Image.fromarray(grid.permute(1, 2, 0).squeeze(2).cpu().numpy())
    size = (picture.width * scale, picture.height * scale)
    picture.resize(size, Image.Resampling.NEAREST).save(path)
