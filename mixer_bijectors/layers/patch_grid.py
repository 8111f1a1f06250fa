"""Mixer geometry: images as matrices of patches."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..bijection import Bijection

__all__ = ["Patchify", "cut", "join", "to_image_shape", "to_pair"]


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one size for both, or from a pair."""
    pair: Any = size if hasattr(size, "__len__") else (size, size)
    try:
        height, width = map(operator.index, pair)
    except (TypeError, ValueError):
        raise ValueError(
            "a patch_size or an offset must be a whole number or a pair of them, (height, "
            f"width), got {size!r}"
        ) from None
    return height, width


def cut(image: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """The mixer matrix (batch, patches, features) of an image."""
    patch_height, patch_width = patch_size
    cells = image.unflatten(3, (-1, patch_width)).unflatten(2, (-1, patch_height))
    return _copied(cells.permute(0, 2, 4, 1, 3, 5)).flatten(3, 5).flatten(1, 2)


def join(
    matrix: Tensor, image_shape: tuple[int, int, int], patch_size: tuple[int, int]
) -> Tensor:
    """The image (batch, channels, height, width) of a mixer matrix."""
    channels, height, width = image_shape
    patch_height, patch_width = patch_size
    cells = matrix.unflatten(2, (channels, patch_height, patch_width))
    cells = cells.unflatten(1, (height // patch_height, width // patch_width))
    return _copied(cells.permute(0, 3, 1, 4, 2, 5)).flatten(4, 5).flatten(2, 3)


def _copied(cells: Tensor) -> Tensor:
    """A copy, also where one of a single patch would be a view of the input."""
    return cells.clone(memory_format=torch.contiguous_format)


def to_image_shape(name: str, image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of an image, if all three are whole numbers from 1."""
    try:
        channels, height, width = map(operator.index, image_shape)
    except (TypeError, ValueError):
        channels = height = width = 0
    if min(channels, height, width) < 1:
        raise ValueError(
            f"{name}: image_shape must be (channels, height, width), got {image_shape!r}; all "
            "three are whole numbers from 1"
        )
    return channels, height, width


class Patchify(Bijection):
    r"""An image as its mixer matrix: one row for each patch, one column for each feature.

    Patches run row-major; the features of a patch are ordered (channel, row, column), as
    `torch.nn.functional.unfold` orders them. `inverse` maps image to matrix (data to latent),
    `forward` matrix to image. To run matrix layers inside an existing image model,
    wrap them: `Chain([nf.flows.Reverse(patchify), layer, patchify])`.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).

    Attributes:
        num_patches: rows of the mixer matrix.
        features: columns of the mixer matrix, channels * patch height * patch width.

    Shapes: image (batch, channels, height, width), matrix (batch, num_patches, features),
    log_det (batch,), zero.

    Raises:
        TypeError: the input is not floating point.
        ValueError: the image is not divisible into patches (on construction), or the input is
            of another shape.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> patchify = Patchify((3, 32, 32), 4)
        >>> patchify.num_patches, patchify.features
        (64, 48)
        >>> matrix, _ = patchify.inverse(torch.randn(5, 3, 32, 32))
        >>> matrix.shape
        torch.Size([5, 64, 48])
    """

    def __init__(self, image_shape: Sequence[int], patch_size: int | Sequence[int]) -> None:
        channels, height, width = to_image_shape(type(self).__name__, image_shape)
        patch_height, patch_width = to_pair(patch_size)
        for side, image, patch in (
            ("height", height, patch_height),
            ("width", width, patch_width),
        ):
            if patch < 1 or image % patch:
                raise ValueError(
                    f"{type(self).__name__}: image {side} {image} is not divisible by patch "
                    f"{side} {patch}"
                )
        grid = (height // patch_height, width // patch_width)
        num_patches, features = grid[0] * grid[1], channels * patch_height * patch_width
        super().__init__((channels, height, width), latent_shape=(num_patches, features))
        self.image_shape = (channels, height, width)
        self.patch_size = (patch_height, patch_width)
        self.grid = grid
        self.num_patches = num_patches
        self.features = features

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        patch = self.patch_size
        y = cut(x, patch) if inverse else join(x, self.image_shape, patch)
        return y, x.new_zeros(())

    def positions(self) -> Tensor:
        """Indices into the flattened image of all entries, (num_patches, features)."""
        pixels = torch.arange(self.num_patches * self.features)
        return cut(pixels.view(1, *self.image_shape), self.patch_size)[0]
