"""The patch grid moved over the image, so that borders of patches mix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._repr import format_event
from ..bijection import Bijection
from ..declarations import check_flow, context_features, event_shapes, shapes_agree
from ..flow import Flow, apply_flow
from .patch_grid import Patchify, cut, join, to_image_shape, to_pair

__all__ = ["CyclicShift", "Shift"]


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
        if event is not None and not shapes_agree(event, size):
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
        channels, *sides = to_image_shape("Shift", image_shape)
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
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor]:
        window, frame = self.take_out(x)
        window, log_det = apply_flow(self.flow, window, context, inverse=inverse, **options)
        return self.put_back(window, frame), log_det

    def take_out(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The matrix of the inner image, and the four sides of the frame around it."""
        top, left = self.offset
        _, height, width = self.window_shape
        image = join(x, self.image_shape, self.patch_size)
        above, rows, below = image.tensor_split((top, top + height), dim=2)
        before, window, after = rows.tensor_split((left, left + width), dim=3)
        return cut(window, self.patch_size), (above, below, before, after)

    def put_back(self, window: Tensor, frame: tuple[Tensor, ...]) -> Tensor:
        """The matrix of the image whose inner image and frame are given."""
        above, below, before, after = frame
        inner = join(window, self.window_shape, self.patch_size)
        rows = torch.cat((before, inner, after), dim=3)
        return cut(torch.cat((above, rows, below), dim=2), self.patch_size)


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
