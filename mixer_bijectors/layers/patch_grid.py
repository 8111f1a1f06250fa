"""Mixer geometry: images as matrices of patches, and the patch grid moved over the image."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._repr import format_event
from ..bijection import Bijection
from ..flow import Flow, apply_flow, check_flow, context_features, event_shapes

__all__ = ["CyclicShift", "Patchify", "Shift", "to_pair"]


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


def _to_image_shape(name: str, image_shape: Sequence[int]) -> tuple[int, int, int]:
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
        channels, height, width = _to_image_shape(type(self).__name__, image_shape)
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


class Shift(Bijection):
    r"""Applies a matrix flow to a patch grid that is moved against the image.

    So pixels on both sides of a patch boundary mix. A frame of pixels outside of the moved grid
    is not transformed.

    The moved grid starts `offset` pixels from the top and left edge and holds all whole patches
    from there on: with the default offset and even patches, the frame is half a patch wide on
    all four sides.

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

    holds_flows = True

    def __init__(
        self,
        flow: Flow,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        *,
        offset: int | Sequence[int] | None = None,
    ) -> None:
        check_flow("Shift", flow)
        outer = Patchify(image_shape, patch_size)
        inner = Patchify(self.inner_shape(image_shape, patch_size, offset), patch_size)
        size = (inner.num_patches, inner.features)
        event = event_shapes(flow)[1]
        if event is not None and not (
            len(event) == 2 and all(n in (None, want) for n, want in zip(event, size))
        ):
            raise ValueError(
                f"Shift: {type(flow).__name__} is for events of shape {format_event(event)}, "
                f"but inside the frame there are {size[0]} patches of {size[1]} features"
            )
        super().__init__(
            (outer.num_patches, outer.features), context_features=context_features(flow)
        )
        self.flow = flow
        self.num_patches, self.features = outer.num_patches, outer.features
        self.offset = _offset(patch_size, offset)
        self.patch_size = outer.patch_size
        self.image_shape, self.window_shape = outer.image_shape, inner.image_shape
        self.register_load_state_dict_pre_hook(_drop_indices)

    @staticmethod
    def inner_shape(
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        offset: int | Sequence[int] | None = None,
    ) -> tuple[int, int, int]:
        """Shape (channels, height, width) of the image that the moved grid covers."""
        channels, *sides = _to_image_shape("Shift", image_shape)
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

    def transform(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        inverse: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        patch, (top, left) = self.patch_size, self.offset
        _, height, width = self.window_shape
        image = join(x, self.image_shape, patch)
        above, rows, below = image.tensor_split((top, top + height), dim=2)
        before, window, after = rows.tensor_split((left, left + width), dim=3)
        inner, log_det = apply_flow(
            self.flow, cut(window, patch), context, inverse=inverse, **options
        )
        rows = torch.cat((before, join(inner, self.window_shape, patch), after), dim=3)
        return cut(torch.cat((above, rows, below), dim=2), patch), log_det


class CyclicShift(Bijection):
    r"""Rolls the image under the patch grid: pixels that leave at one edge enter at the other.

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

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        *,
        offset: int | Sequence[int] | None = None,
    ) -> None:
        patchify = Patchify(image_shape, patch_size)
        super().__init__((patchify.num_patches, patchify.features))
        self.num_patches, self.features = patchify.num_patches, patchify.features
        self.image_shape, self.patch_size = patchify.image_shape, patchify.patch_size
        self.offset = _offset(patch_size, offset)
        self.register_load_state_dict_pre_hook(_drop_indices)

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        top, left = self.offset
        shift = (-top, -left) if inverse else (top, left)
        image = join(x, self.image_shape, self.patch_size).roll(shift, dims=(2, 3))
        return cut(image, self.patch_size), x.new_zeros(())


def _drop_indices(
    layer: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Remove the indices from an older state_dict; the layers no longer need them."""
    for name in ("inner", "rolled", "unrolled"):
        state_dict.pop(prefix + name, None)


def _offset(
    patch_size: int | Sequence[int], offset: int | Sequence[int] | None
) -> tuple[int, int]:
    height, width = to_pair(patch_size)
    return (height // 2, width // 2) if offset is None else to_pair(offset)
