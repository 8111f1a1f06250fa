"""Encoded images to arrays: every kind of pixel, and damaged bytes."""

import io
import struct
import zlib
from random import Random

import numpy as np
import pytest
from image_files import random_image
from PIL import Image, features

from mixer_bijectors.train.data.decode import open_image
from mixer_bijectors.train.io.errors import DataError, ImageError


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_16(values, colour, *extra):
    """A PNG of one row and 16 bits, which Pillow writes for grey alone."""
    row = np.asarray(values, ">u2")
    header = struct.pack(">IIBBBBB", len(row), 1, 16, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row.tobytes())
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_16(mode, dtype, **options):
    values = np.array([GREY_16], dtype)
    image = Image.frombuffer(mode, values.shape[::-1], values.tobytes(), "raw", mode, 0, 1)
    return encode(image, "TIFF", **options)


def palette(transparency=None):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 255, 0, 0])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    return encode(image, **options)


def of_pixels(mode, pixels):
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


GREY_16 = [0, 128, 129, 255, 256, 32768, 65406, 65407, 65535]
GREY_8 = [0, 0, 1, 1, 1, 128, 254, 255, 255]
WHITE = (255, 255, 255)
# what is encoded, the pixels in RGB, and those in grey
PIXELS = {
    "RGB": (
        encode(of_pixels("RGB", [(1, 2, 3), (250, 0, 9)])),
        [(1, 2, 3), (250, 0, 9)],
        [2, 76],
    ),
    "L": (encode(of_pixels("L", [0, 7, 255])), None, [0, 7, 255]),
    "1 bit": (encode(of_pixels("1", [0, 255, 0])), None, [0, 255, 0]),
    "palette": (palette(), [(10, 20, 30), (40, 50, 60), (255, 0, 0)], [18, 48, 76]),
    "palette, one transparent": (
        palette(1),
        [(10, 20, 30), WHITE, (255, 0, 0)],
        [18, 255, 76],
    ),
    "palette, alpha": (
        palette(bytes([0, 255, 128])),
        [WHITE, (40, 50, 60), (255, 127, 127)],
        [255, 48, 165],
    ),
    "LA": (encode(of_pixels("LA", [(9, 255), (9, 0), (0, 51)])), None, [9, 255, 204]),
    "RGBA": (
        encode(of_pixels("RGBA", [(1, 2, 3, 255), (1, 2, 3, 0), (0, 100, 255, 51)])),
        [(1, 2, 3), WHITE, (204, 224, 255)],
        [2, 255, 222],
    ),
    "RGB, one transparent": (
        encode(of_pixels("RGB", [(1, 2, 3), (4, 5, 6)]), transparency=(4, 5, 6)),
        [(1, 2, 3), WHITE],
        [2, 255],
    ),
    "CMYK": (
        encode(of_pixels("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0)]), "TIFF"),
        [WHITE, (0, 255, 255)],
        [255, 179],
    ),
    "16-bit PNG": (png_16(GREY_16, 0), None, GREY_8),
    "16-bit PNG, one transparent": (
        png_16(GREY_16, 0, chunk(b"tRNS", struct.pack(">H", 256))),
        None,
        [0, 0, 1, 1, 255, 128, 254, 255, 255],
    ),
    "16-bit RGB": (
        png_16([[0, 255, 256], [32768, 65535, 7]], 2),
        [(0, 0, 1), (128, 255, 0)],
        [0, 188],
    ),
    "16-bit LA": (png_16([[4000, 65535], [4000, 0]], 4), None, [15, 255]),
    "16-bit RGBA": (
        png_16([[256, 512, 768, 65535], [0, 0, 0, 0]], 6),
        [(1, 2, 3), WHITE],
        [2, 255],
    ),
    "I;16 TIFF": (tiff_16("I;16", "<u2"), None, GREY_8),
    "I;16B TIFF": (tiff_16("I;16B", ">u2"), None, GREY_8),
    "I TIFF": (tiff_16("I", "<i4"), None, GREY_8),
    "16-bit TIFF whose zeros are white": (
        tiff_16("I;16", "<u2", tiffinfo={262: 0}),
        None,
        [255 - grey for grey in GREY_8],
    ),
    "16-bit PGM": (
        b"P5 9 1 65535\n" + np.array(GREY_16, ">u2").tobytes(),
        None,
        GREY_8,
    ),
    "10-bit PGM": (
        b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes(),
        None,
        [0, 128, 255],
    ),
    "GIF": (encode(of_pixels("RGB", [(1, 2, 3)]), "GIF"), [(1, 2, 3)], [2]),
    "BMP": (encode(of_pixels("RGB", [(1, 2, 3)]), "BMP"), [(1, 2, 3)], [2]),
    "WebP": (encode(of_pixels("RGB", [(1, 2, 3)]), "WEBP", lossless=True), [(1, 2, 3)], [2]),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_every_kind_of_pixel(kind):
    encoded, colours, greys = PIXELS[kind]
    image = open_image(encoded, 3)
    assert image.mode == "RGB"
    expected = colours or [(grey, grey, grey) for grey in greys]
    assert np.asarray(image)[0].tolist() == [list(colour) for colour in expected]
    image = open_image(encoded, 1)
    assert image.mode == "L"
    assert np.asarray(image)[0].tolist() == greys


def test_jpeg_in_cmyk():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = np.asarray(open_image(encode(image, "JPEG", quality=95), 3)).astype(int)
    assert np.abs(decoded - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_orientation(form, orientation):
    """Where the first row and column of the stored picture go, as the standard has it."""
    stored = np.zeros((32, 48), np.uint8)
    stored[:16, :16], stored[:16, 32:] = 255, 128
    upright = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: a[::-1].T,
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: a.T[::-1],
    }.get(orientation, lambda a: a)(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(stored).convert("RGB"), form, exif=exif)
    decoded = np.asarray(open_image(encoded, 1)).astype(int)
    assert decoded.shape == upright.shape
    assert np.abs(decoded - upright).mean() < 4


def test_an_upright_16_bit_image_and_exif_that_makes_no_sense():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.frombytes("I;16", (2, 1), np.array([257, 65535], "<u2").tobytes())
    assert np.asarray(open_image(encode(grey, exif=exif), 1)).tolist() == [[1], [255]]
    encoded = encode(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0no exif at all")
    assert open_image(encoded, 3).size == (4, 4)


def exif_of(*tags, order="<", tail=b""):
    """EXIF of one directory; each tag is (number, type, count, the four bytes of its value)."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", 8)
    entries = b"".join(struct.pack(f"{order}HHL4s", *tag) for tag in sorted(tags))
    count = struct.pack(f"{order}H", len(tags))
    return b"Exif\0\0" + head + count + entries + bytes(4) + tail


def orientation_tag(value, order="<"):
    return (0x0112, 3, 1, struct.pack(f"{order}HH", value, 0))


ODD_TAGS = {
    "signed resolution": (0x011A, 10, 1, struct.pack("<L", 8 + 2 + 2 * 12 + 4)),
    "text in StripOffsets": (0x0111, 2, 4, b"abc\0"),
    "a description outside of the file": (0x010E, 2, 1000, b"\xff" * 4),
    "a camera of no type": (0x010F, 0, 1, bytes(4)),
    "a directory that is none": (0x8769, 4, 1, b"\xff" * 4),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("odd", ODD_TAGS)
def test_one_odd_tag_beside_the_orientation(odd, form):
    exif = exif_of(orientation_tag(6), ODD_TAGS[odd], tail=struct.pack("<ll", -1, 0))
    assert open_image(encode(random_image(6, 4), form, exif=exif), 3).size == (4, 6)


def test_a_resolution_that_is_empty_text(tmp_path):
    exif = exif_of(orientation_tag(6), (0x011A, 2, 4, bytes(4)), (0x0128, 3, 1, b"\2\0\0\0"))
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(random_image(6, 4), "JPEG", exif=exif))
    for source in (path, path.read_bytes()):
        assert open_image(source, 3).size == (4, 6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", "<>")
def test_only_the_orientation_is_read_of_damaged_exif(order):
    random = Random(0)
    known = (0x0100, 0x010E, 0x0111, 0x0117, 0x011A, 0x0128, 0x0132, 0x02BC, 0x8769, 0x8825)
    for trial in range(300):
        tags = {random.choice([*known, random.randrange(2**16)]) for _ in range(4)} - {0x0112}
        damaged = [
            (
                tag,
                random.choice([*range(14), random.randrange(2**16)]),
                random.choice([0, 1, 2, 4, 5, 100, 2**31, 2**32 - 1]),
                random.choice([b"text", bytes(4), b"\xff" * 4, random.randbytes(4)]),
            )
            for tag in tags
        ]
        value = random.randrange(1, 9)
        exif = exif_of(orientation_tag(value, order), *damaged, order=order)
        decoded = open_image(encode(random_image(6, 4), "JPEG", exif=exif), 1)
        assert decoded.size == ((4, 6) if value > 4 else (6, 4)), (trial, value, damaged)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_there_is_not(value):
    encoded = encode(random_image(6, 4), exif=exif_of(orientation_tag(value)))
    assert open_image(encoded, 3).size == (6, 4)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if form == "WEBP" else {}
    encoded = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert open_image(encoded, 3).getcolors() == [(16, (255, 0, 0))]


def test_paths(tmp_path):
    path = tmp_path / "image without a suffix"
    path.write_bytes(encode(Image.new("L", (3, 2), 7)))
    for source in (path, str(path)):
        assert np.asarray(open_image(source, 1)).tolist() == [[7] * 3] * 2
    for wrong, reason in ((tmp_path / "missing", "No such file"), (tmp_path, "a directory")):
        with pytest.raises(ImageError, match=reason) as caught:
            open_image(wrong, 1)
        assert str(tmp_path) not in str(caught.value)


JPEG = encode(random_image(40, 30), "JPEG")
BAD = {
    "nothing": (b"", "no image"),
    "zeros": (bytes(1000), "no image"),
    "text": (b"<html></html>", "no image"),
    "a JPEG's end is missing": (JPEG[: len(JPEG) // 2], "truncated"),
    "a PNG's end is missing": (encode(random_image(40, 30))[:1000], "cannot be decoded"),
    "a WebP's end is missing": (
        encode(random_image(40, 30), "WEBP")[:300],
        "cannot be decoded",
    ),
    "only a header": (JPEG[:20], "no image"),
    "floating point": (encode(Image.new("F", (2, 2)), "TIFF"), "floating point"),
    "32 bits": (encode(of_pixels("I", [0, 70000]), "TIFF"), "grey of 32 bits"),
    "negative": (encode(of_pixels("I", [0, -1]), "TIFF"), "grey of 32 bits"),
    "PostScript": (encode(Image.new("RGB", (2, 2)), "EPS"), "no image"),
    "an icon": (encode(Image.new("RGB", (16, 16)), "ICO"), "no image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes(name):
    encoded, reason = BAD[name]
    with pytest.raises(ImageError, match=reason) as caught:
        open_image(encoded, 3)
    assert isinstance(caught.value, DataError)
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_no_channels():
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        open_image(JPEG, 4)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("pixels", [1201, 3000])
def test_decompression_bombs(monkeypatch, pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert open_image(encode(Image.new("L", (1200, 1))), 1).size == (1200, 1)
    with pytest.raises(ImageError, match=r"limit of \d+"):
        open_image(encode(Image.new("L", (pixels, 1))), 1)


SEEDS = {
    "jpeg": JPEG,
    "jpeg-exif": encode(
        random_image(8, 8), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"
    ),
    "progressive": encode(random_image(16, 16), "JPEG", progressive=True),
    "png": encode(random_image(9, 7)),
    "png-palette": palette(bytes([0, 255, 128])),
    "png-16": png_16(GREY_16, 0),
    "gif": encode(random_image(9, 7), "GIF", save_all=True, append_images=[random_image(9, 7)]),
    "webp": encode(random_image(9, 7), "WEBP"),
    "tiff": encode(random_image(9, 7), "TIFF"),
    "tiff-lzw": encode(random_image(9, 7), "TIFF", compression="tiff_lzw"),
    "tiff-16": tiff_16("I;16B", ">u2"),
    "bmp": encode(random_image(9, 7), "BMP"),
    "ppm": encode(random_image(9, 7), "PPM"),
    **(
        {"jpeg2000": encode(random_image(9, 7), "JPEG2000")}
        if features.check("jpg_2000")
        else {}
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", SEEDS)
def test_damaged_bytes_raise_nothing_else(form):
    encoded = SEEDS[form]
    random = Random(0)
    opened = 0
    for trial in range(400):
        damaged = bytearray(encoded)
        for _ in range(random.randint(1, 4)):
            # headers matter most, and lie at the start or the end
            where = random.choice([random.randrange(len(damaged)), random.randrange(60), -1])
            damaged[where % len(damaged)] = random.choice([0, 1, 255, random.randrange(256)])
        if trial % 4 == 0:
            del damaged[random.randrange(len(damaged)) :]
        try:
            image = open_image(bytes(damaged), 1 + 2 * (trial % 2))
        except ImageError:
            continue
        opened += 1
        assert image.mode == ("RGB" if trial % 2 else "L")
    assert 0 < opened < 400
