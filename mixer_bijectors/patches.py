"""Mixer geometry: images as matrices of patches, and the patch grid moved over the image."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import check_input
from .flow import Flow, apply_flow

__all__ = ["CyclicShift", "Patchify", "Shift", "to_pair"]


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from a size that stands for both, or from a pair."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return operator.index(height), operator.index(width)


class Patchify(Flow):
    r"""An image as its mixer matrix: one row for each patch, one column for each feature.

    Patches run row-major; the features of a patch are ordered (channel, row, column), as
    `torch.nn.functional.unfold` orders them. `inverse` maps image to matrix (data to latent),
    `forward` matrix to image. To run matrix layers inside an image model that stands already,
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
        super().__init__()
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(
                "Patchify: image_shape must be (channels, height, width), "
                f"got {tuple(image_shape)}"
            )
        channels, height, width = map(operator.index, image_shape)
        patch_height, patch_width = to_pair(patch_size)
        for side, image, patch in (
            ("height", height, patch_height),
            ("width", width, patch_width),
        ):
            if patch < 1 or image % patch:
                raise ValueError(
                    f"Patchify: image {side} {image} is not divisible by patch {side} {patch}"
                )
        self.image_shape = (channels, height, width)
        self.patch_size = (patch_height, patch_width)
        self.grid = (height // patch_height, width // patch_width)
        self.num_patches = self.grid[0] * self.grid[1]
        self.features = channels * patch_height * patch_width

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input("Patchify", z, self.num_patches, self.features)
        cells = z.unflatten(2, (self.image_shape[0], *self.patch_size))
        cells = cells.unflatten(1, self.grid)
        image = cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return image, z.new_zeros(len(z))

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input("Patchify", x, *self.image_shape)
        cells = x.unflatten(3, (self.grid[1], self.patch_size[1]))
        cells = cells.unflatten(2, (self.grid[0], self.patch_size[0]))
        matrix = cells.permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)
        return matrix, x.new_zeros(len(x))

    def positions(self) -> Tensor:
        """Where each entry of the matrix comes from: indices into the flattened image."""
        pixels = torch.arange(self.num_patches * self.features, dtype=torch.float64)
        matrix, _ = self.inverse(pixels.view(1, *self.image_shape))
        return matrix[0].long()


class Shift(Flow):
    r"""Runs a matrix flow on a patch grid that is moved against the image, so that patch
    boundaries mix; a frame of pixels that the moved grid leaves over passes through.

    The moved grid starts `offset` pixels from the top and left edge and holds all whole patches
    from there on: with the default offset and even patches, the frame is half a patch wide on
    all four sides. What lies in the frame is not transformed by this layer.

    Args:
        flow: a matrix flow for the inner image, whose number of patches is smaller:
            `Patchify(Shift.inner_shape(image_shape, patch_size), patch_size).num_patches`.
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        offset: pixels by which the grid moves, or (rows, columns); by default half a patch.

    Shapes: (batch, patches, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the image is not divisible into patches, the offset is zero or not smaller
            than a patch, no whole patch is left inside the frame (all on construction), or the
            input is of another shape.

    References:
        English et al., MixerFlow, 2023, the shift layer (https://arxiv.org/abs/2310.16777)

    Example:
        >>> inner = Patchify(Shift.inner_shape((3, 32, 32), 4), 4)
        >>> inner.num_patches
        49
        >>> layer = Shift(mb.PatchMixing(mb.Coupling(49)), (3, 32, 32), 4)
        >>> z, _ = layer.inverse(torch.randn(2, 64, 48))
        >>> z.shape
        torch.Size([2, 64, 48])
    """

    inner: Tensor

    def __init__(
        self,
        flow: Flow,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        *,
        offset: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.flow = flow
        outer = Patchify(image_shape, patch_size)
        inner = Patchify(self.inner_shape(image_shape, patch_size, offset), patch_size)
        top, left = _offset(patch_size, offset)
        self.num_patches, self.features = outer.num_patches, outer.features
        self.inner_patches = inner.num_patches

        # Entry i of the inner matrix is entry inner[i] of the outer one, both flattened.
        _, height, width = outer.image_shape
        _, inner_height, inner_width = inner.image_shape
        places = torch.empty(outer.image_shape, dtype=torch.long).flatten()
        positions = outer.positions().flatten()
        places[positions] = torch.arange(len(positions))
        window = places.view(-1, height, width)[
            :, top : top + inner_height, left : left + inner_width
        ]
        self.register_buffer("inner", window.flatten()[inner.positions().flatten()])

    @staticmethod
    def inner_shape(
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        offset: int | Sequence[int] | None = None,
    ) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the image that the moved grid covers."""
        channels, *sides = image_shape
        patch = to_pair(patch_size)
        offsets = _offset(patch_size, offset)
        if not any(offsets) or any(not 0 <= o < p for o, p in zip(offsets, patch)):
            raise ValueError(
                f"Shift: offset {offsets} must be positive and smaller than the patch {patch}; "
                "use larger patches, or shift_every=0 in a MixerFlow"
            )
        height, width = ((s - o) // p * p for s, o, p in zip(sides, offsets, patch))
        if not (height and width):
            raise ValueError(
                f"Shift: image {tuple(sides)} has no whole patch {patch} left inside a frame "
                f"of {offsets} pixels; use smaller patches, or shift_every=0 in a MixerFlow"
            )
        return channels, height, width

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, inverse=True)

    def _transform(
        self, x: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        check_input("Shift", x, self.num_patches, self.features)
        entries = x.flatten(1)
        inner = entries.index_select(1, self.inner).unflatten(1, (self.inner_patches, -1))
        inner, log_det = apply_flow(self.flow, inner, context, inverse=inverse)
        entries = entries.index_copy(1, self.inner, inner.flatten(1))
        return entries.view_as(x), log_det


class CyclicShift(Flow):
    r"""Rolls the image under the patch grid: what leaves on one edge enters on the other.

    `inverse` rolls up and left by `offset` pixels, so that patches start `offset` pixels later;
    `forward` rolls back. Unlike `Shift` it has no frame and keeps the number of patches, at the
    price of patches that hold pixels from opposite edges.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        offset: pixels by which the image rolls, or (rows, columns); by default half a patch.

    Shapes: (batch, patches, features) in and out, log_det (batch,), zero.

    Raises:
        TypeError: the input is not floating point.
        ValueError: the image is not divisible into patches (on construction), or the input is
            of another shape.

    Example:
        >>> shift = CyclicShift((3, 32, 32), 4)
        >>> x = torch.randn(2, 64, 48)
        >>> z, _ = shift.inverse(x)
        >>> torch.equal(shift(z)[0], x)
        True
    """

    rolled: Tensor
    unrolled: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        *,
        offset: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        patchify = Patchify(image_shape, patch_size)
        self.num_patches, self.features = patchify.num_patches, patchify.features
        positions = patchify.positions().flatten()
        places = positions.argsort().view(patchify.image_shape)
        top, left = _offset(patch_size, offset)
        rolled = places.roll((-top, -left), dims=(1, 2)).flatten()[positions]
        self.register_buffer("rolled", rolled)
        self.register_buffer("unrolled", rolled.argsort())

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._gather(z, self.unrolled)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._gather(x, self.rolled)

    def _gather(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        check_input("CyclicShift", x, self.num_patches, self.features)
        return x.flatten(1).index_select(1, index).view_as(x), x.new_zeros(len(x))


def _offset(
    patch_size: int | Sequence[int], offset: int | Sequence[int] | None
) -> tuple[int, int]:
    height, width = to_pair(patch_size)
    return (height // 2, width // 2) if offset is None else to_pair(offset)
