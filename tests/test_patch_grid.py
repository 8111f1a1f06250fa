"""Geometry: where pixels go."""

import pytest
import torch
from torch.nn import functional as F

import mixer_bijectors as mb
from mixer_bijectors import Chain, Patchify, Shift

SHAPES = pytest.mark.parametrize(
    ("image_shape", "patch_size"),
    [
        ((3, 32, 32), 4),
        ((1, 6, 4), 2),
        ((2, 6, 8), (3, 2)),
        ((5, 4, 6), (1, 3)),
        ((1, 3, 3), 1),
    ],
)


class Negate(mb.Chain):
    """Marks what a shifted flow touches."""

    def __init__(self):
        super().__init__([])

    def inverse(self, x, context=None):
        return -x, x.new_zeros(len(x))


@SHAPES
def test_patchify_orders_as_unfold_does(image_shape, patch_size):
    patchify = Patchify(image_shape, patch_size)
    x = torch.randn(2, *image_shape)
    matrix, _ = patchify.inverse(x)
    assert matrix.shape == (2, patchify.num_patches, patchify.features)
    assert torch.equal(matrix, F.unfold(x, patch_size, stride=patch_size).mT)
    assert torch.equal(patchify(matrix)[0], x)


@pytest.mark.parametrize(
    ("image_shape", "patch_size", "offset", "window"),
    [
        ((3, 32, 32), 4, None, (2, 30, 2, 30)),
        ((1, 8, 12), 4, 1, (1, 5, 1, 9)),
        ((2, 6, 6), 3, None, (1, 4, 1, 4)),
        ((2, 6, 8), (3, 2), (2, 1), (2, 5, 1, 7)),
        ((2, 6, 8), (3, 2), (0, 1), (0, 6, 1, 7)),
        ((1, 5, 6), (1, 2), None, (0, 5, 1, 5)),
    ],
)
def test_shift_transforms_the_window_and_passes_the_frame(
    image_shape, patch_size, offset, window
):
    top, bottom, left, right = window
    assert Shift.inner_shape(image_shape, patch_size, offset) == (
        image_shape[0],
        bottom - top,
        right - left,
    )
    patchify = Patchify(image_shape, patch_size)
    x = torch.randn(2, *image_shape)
    shifted = Shift(Negate(), image_shape, patch_size, offset=offset)
    z = patchify(shifted.inverse(patchify.inverse(x)[0])[0])[0]
    want = x.clone()
    want[:, :, top:bottom, left:right] *= -1
    assert torch.equal(z, want)


def test_shift_hands_on_the_patches_of_the_moved_grid():
    seen = []

    class Spy(Negate):
        def inverse(self, x, context=None):
            seen.append(x)
            return super().inverse(x)

    x = torch.randn(2, 3, 8, 12)
    shift = Shift(Spy(), (3, 8, 12), 4)
    shift.inverse(Patchify((3, 8, 12), 4).inverse(x)[0])
    want, _ = Patchify((3, 4, 8), 4).inverse(x[:, :, 2:6, 2:10])
    assert torch.equal(seen[0], want)


@pytest.mark.parametrize("offset", [None, 1, (3, 0), (0, 5)])
def test_cyclic_shift_rolls_the_image(offset):
    patchify = Patchify((3, 8, 12), 4)
    shift = mb.CyclicShift((3, 8, 12), 4, offset=offset)
    top, left = {None: (2, 2), 1: (1, 1)}.get(offset, offset)
    x = torch.randn(2, 3, 8, 12)
    z = Chain([patchify]).forward(shift.inverse(patchify.inverse(x)[0])[0])[0]
    assert torch.equal(z, x.roll((-top, -left), dims=(2, 3)))
