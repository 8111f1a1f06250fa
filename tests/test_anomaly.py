"""Complexity of images and scores of anomalies."""

import io

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from mixer_bijectors.train.tasks.anomaly import anomaly_scores, auroc, complexity


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def decoded_size(image, kind, **options):
    """Bytes of a file, which must hold the very pixels."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    back = Image.open(file).convert("L" if image.ndim == 2 else "RGB")
    assert_close(torch.tensor(list(back.tobytes())), torch.tensor(image).flatten().long())
    return len(file.getvalue())


@pytest.mark.parametrize("channels", [1, 3])
def test_is_the_shorter_of_two_lossless_files(channels):
    flat = torch.full((1, channels, 12, 10), 7, dtype=torch.uint8)
    ramp = torch.arange(10, dtype=torch.uint8).expand(1, channels, 12, 10)
    images = torch.cat([noise(1, channels, 12, 10), flat, ramp])
    want = []
    for image in images:
        pixels = image.permute(1, 2, 0).squeeze(2).numpy()
        sizes = (
            decoded_size(pixels, "PNG", optimize=True),
            decoded_size(pixels, "WEBP", lossless=True),
        )
        want.append(8 * min(sizes) / image.numel())
    got = complexity(images)
    assert got.shape == (3,)
    assert_close(got, torch.tensor(want))
    assert got[0] > 8 > got[2] >= got[1]


def test_simple_images_are_shorter():
    images = noise(1, 3, 32, 32)
    coarse = images[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)
    flat = torch.zeros_like(images)
    sizes = complexity(torch.cat([images, coarse, flat]))
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_any_number_of_channels(channels):
    images = noise(2, channels, 8, 6)
    assert_close(complexity(images), complexity(images.view(2, 1, channels * 8, 6)))


def test_each_image_for_itself():
    images = noise(3, 1, 8, 8)
    assert_close(complexity(images), torch.cat([complexity(x[None]) for x in images]))
    assert complexity(images[:0]).shape == (0,)
    # Views in another order of memory, such as those of a dataset of rows.
    turned = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert_close(complexity(turned), complexity(images))


def test_scores():
    bits, sizes = torch.tensor([2.0, 5.0, 3.5]), torch.tensor([1.0, 7.0, 3.0])
    scores = anomaly_scores(bits, sizes, 3.0)
    assert list(scores) == ["bits_per_dim", "ratio", "typicality"]
    assert_close(scores["bits_per_dim"], bits)
    assert_close(scores["ratio"], torch.tensor([1.0, -2.0, 0.5]))
    assert_close(scores["typicality"], torch.tensor([1.0, 2.0, 0.5]))


def test_auroc_counts_pairs():
    inside, outside = torch.randn(30), torch.randn(40).round(decimals=1) + 0.5
    inside[:5] = outside[:5]
    above = (outside[:, None] > inside).double() + 0.5 * (outside[:, None] == inside)
    assert auroc(inside, outside) == pytest.approx(above.mean().item())
    assert auroc(inside, outside) == pytest.approx(1 - auroc(outside, inside))
    # Neither large scores nor small differences are lost.
    assert auroc(inside.double() * 1e-7 + 1e3, outside.double() * 1e-7 + 1e3) == pytest.approx(
        above.mean().item()
    )


def test_auroc_of_what_is_not_a_number():
    inside = torch.tensor([1.0, 2.0])
    assert auroc(inside, torch.tensor([torch.nan, torch.inf])) == 1.0
    assert auroc(inside, torch.tensor([torch.nan, -torch.inf])) == 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: auroc(torch.rand(2), torch.rand(0)),
            ValueError,
            "auroc: needs scores from inside and outside, got 2 and 0",
        ),
    ],
)
def test_one_sentence_says_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
