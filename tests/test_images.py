"""Dequantisation, bits per dimension and grids."""

import math

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from mixer_bijectors import images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantisation_is_exact(dtype):
    x = torch.arange(256, dtype=torch.uint8).repeat(4000)
    y = images.dequantize(x, dtype=dtype)
    assert y.dtype == dtype
    assert y.min() >= -1 and y.max() < 1
    assert torch.equal(images.quantize(y), x)


def test_noise_is_uniform_and_seeded():
    x = torch.zeros(100_000, dtype=torch.uint8)
    noise = (images.dequantize(x, generator=torch.Generator().manual_seed(3)) + 1) * 128
    again = (images.dequantize(x, generator=torch.Generator().manual_seed(3)) + 1) * 128
    assert torch.equal(noise, again)
    assert noise.min() >= 0 and noise.max() < 1
    assert_close(noise.mean(), torch.tensor(0.5), atol=5e-3, rtol=0)
    assert_close(noise.var(), torch.tensor(1 / 12), atol=2e-3, rtol=0)


def test_quantize_maps_everything_to_a_level():
    x = torch.tensor([-9.0, -1.0, 0.0, 0.9999999, 1.0, torch.inf, -torch.inf, torch.nan])
    assert images.quantize(x).tolist() == [0, 0, 128, 255, 255, 255, 0, 0]


@pytest.mark.parametrize("image_shape", [(3, 8, 8), (1, 4, 6)])
def test_bits_per_dim_of_a_known_density(image_shape):
    """Pixels uniform over k of the 256 levels cost log2(k) bits, whatever the scale."""
    dims = math.prod(image_shape)
    for levels in (1, 16, 256):
        log_density = -math.log(levels / 128)  # of one pixel on [-1, 1), width levels / 128
        bits = images.bits_per_dim(torch.full((5,), dims * log_density), image_shape)
        assert_close(bits, torch.full((5,), math.log2(levels)))


def test_bits_per_dim_bounds_the_discrete_entropy():
    """A density that is constant over each level attains the entropy of the levels."""
    probabilities = torch.softmax(torch.randn(256, dtype=torch.float64), dim=0)
    entropy = -(probabilities * probabilities.log2()).sum()
    x = torch.multinomial(probabilities, 200_000, replacement=True).to(torch.uint8)
    y = images.dequantize(x, dtype=torch.float64)
    log_density = (probabilities * 128).log()[((y + 1) * 128).floor().long()]
    bits = images.bits_per_dim(log_density, (1, 1, 1)).mean()
    assert_close(bits, entropy, atol=1e-2, rtol=0)


def test_grid_places_images_row_by_row(tmp_path):
    x = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    grid = images.make_grid(x, columns=3, gap=1)
    assert grid.shape == (3, 2 * 5 + 1, 3 * 7 + 1)
    assert torch.equal(grid[:, 1:5, 1:7], x[0])
    assert torch.equal(grid[:, 6:10, 8:14], x[4])
    assert (grid[:, 6:10, 15:21] == 255).all()
    images.save_grid(tmp_path / "grid.png", x, columns=3, gap=1, scale=2)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (44, 22)
        assert picture.getpixel((2, 2)) == tuple(x[0, :, 0, 0].tolist())


def test_grey_grids_and_default_columns(tmp_path):
    grid = images.make_grid(torch.zeros(9, 1, 2, 2), gap=0)
    assert grid.shape == (3, 6, 6)
    assert (grid == 128).all()
    images.save_grid(tmp_path / "grid.png", torch.zeros(9, 1, 2, 2), gap=0)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == "L" and picture.size == (6, 6)
        assert picture.getextrema() == (128, 128)


@pytest.mark.parametrize(
    "noise", [images.dequantize, lambda x, **k: images.add_noise(x, 0.1, **k)]
)
def test_noise_by_seed_does_not_depend_on_the_batch(noise):
    x = torch.randint(256, (4, 1, 3, 5), dtype=torch.uint8)
    whole = noise(x, seeds=[3, 5, 3, 7])
    parts = torch.cat([noise(x[1:3], seeds=[5, 3]), noise(x[3:], seeds=[7])])
    assert torch.equal(whole[1:], parts)
    same = noise(torch.stack([x[0], x[0], x[0]]), seeds=[1, 1, 2])
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
