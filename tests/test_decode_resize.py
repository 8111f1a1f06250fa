"""Decoded images in another size."""

import numpy as np
import pytest
from image_files import random_image
from PIL import Image

from mixer_bijectors.train.data.decode import resize


# sizes
def guided_diffusion(image, size):
    """The centre crop of Dhariwal and Nichol, with the steps of their center_crop_arr."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    scaled = tuple(round(x * scale) for x in image.size)
    pixels = np.array(image.resize(scaled, resample=Image.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size].transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(500, 375), (333, 500), (64, 64), (31, 57), (129, 65)])
@pytest.mark.parametrize("size", [32, 64])
def test_centre_crops_are_those_of_guided_diffusion(shape, size):
    image = random_image(*shape)
    assert np.array_equal(resize(image, (size, size), "crop"), guided_diffusion(image, size))


def test_squash_averages_boxes():
    image = random_image(24, 8)
    squashed = resize(image, (4, 6), "squash")
    means = np.asarray(image).reshape(4, 2, 6, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    assert squashed.shape == (3, 4, 6) and squashed.dtype == np.uint8
    assert np.abs(squashed - means).max() <= 1
    grey = random_image(24, 8).convert("L")
    assert resize(grey, (4, 6), "squash").shape == (1, 4, 6)


@pytest.mark.parametrize("how", ["crop", "squash"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_of_the_size_stays_as_it_is(how, mode):
    image = random_image(17, 9, mode)
    pixels = resize(image, (9, 17), how, (0.2, 0.9))
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert np.array_equal(pixels, np.asarray(image).reshape(9, 17, -1).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("position", "top", "left"),
    [((0.5, 0.5), 0, 10), ((0, 0), 0, 0), ((1, 1), 0, 20), ((0.3, 0.25), 0, 5)],
)
def test_where_a_crop_is_cut(position, top, left):
    image = random_image(30, 10)
    pixels = np.asarray(image).transpose(2, 0, 1)
    cut = resize(image, (10, 10), "crop", position)
    assert np.array_equal(cut, pixels[:, top : top + 10, left : left + 10])
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    cut = resize(turned, (10, 10), "crop", position[::-1])
    assert np.array_equal(cut, pixels[:, top : top + 10, left : left + 10].transpose(0, 2, 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50000), (50000, 1), (2, 9999), (3, 1), (7, 200)])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (256, 16), (5, 300)])
@pytest.mark.parametrize("how", ["crop", "squash"])
@pytest.mark.parametrize("position", [(0, 0), (0.5, 0.5), (1, 1)])
def test_any_shape_fits_any_size(shape, size, how, position):
    pixels = resize(Image.new("RGB", shape, (10, 200, 30)), size, how, position)
    assert pixels.shape == (3, *size)
    assert (pixels == np.array([10, 200, 30])[:, None, None]).all(), "nothing from outside"


def test_a_strip_is_cut_where_it_was_asked():
    ramp = np.linspace(0, 255, 20000).astype(np.uint8)[None]
    for share in (0, 0.25, 0.5, 1):
        pixels = resize(Image.fromarray(ramp), (64, 64), "crop", (0.5, share))
        assert abs(pixels.mean() - 255 * share) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, r"size must be positive, got \(0, 4\)"),
        ({"how": "stretch"}, "how must be 'crop' or 'squash', got 'stretch'"),
        ({"position": (0.5, 1.5)}, r"position must be from 0 to 1, got \(0.5, 1.5\)"),
        ({"position": (float("nan"), 0)}, "position must be from 0 to 1"),
    ],
)
def test_resize_refuses(options, message):
    with pytest.raises(ValueError, match=f"resize: {message}"):
        resize(Image.new("L", (4, 4)), **{"size": (2, 2), "how": "crop", **options})
