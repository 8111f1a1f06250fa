"""Decodes images of files, and resizes them to 8-bit arrays."""

import io
import math
import os
import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from ..io.errors import ImageError
from ..io.names import first_line

__all__ = ["FORMATS", "ImageError", "open_image", "resize"]

# Only these formats, since Pillow starts other programs for some, such as Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_EXIF = b"Exif\0\0"
# The operation that turns an image upright, by its orientation in EXIF.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A scaled image may be at most so many times as long as the part that is cut out of it.
_LONGEST = 32


def open_image(source: bytes | str | os.PathLike[str], channels: int) -> Image.Image:
    """An image in 8 bits, RGB or greyscale, upright as its EXIF orientation says.

    Transparent pixels are composited on white. 16 bits of grey are rounded to 8, and of 16 bits
    of colour Pillow keeps the upper 8. Colour profiles are ignored. Of an animation, the first
    frame is read. EXIF that cannot be parsed is ignored.

    Args:
        source: the encoded bytes, or the path of a file of them: JPEG, PNG, WebP, GIF, BMP,
            TIFF, PPM, JPEG 2000 or, where Pillow has it, AVIF.
        channels: 3 for mode ``"RGB"``, 1 for mode ``"L"``.

    Raises:
        ImageError: the image is truncated, damaged, of another format, of floating point
            pixels, or larger than `PIL.Image.MAX_IMAGE_PIXELS`. The reason is a part of a
            sentence without the name of the file, which the caller adds.
        ValueError: `channels` is neither 1 nor 3.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("P", (4, 2)).save(file, "PNG")
        >>> open_image(file.getvalue(), channels=3)
        <PIL.Image.Image image mode=RGB size=4x2 at 0x...>
    """
    if channels not in (1, 3):
        raise ValueError(f"open_image: channels must be 1 or 3, got {channels}")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=formats) as image:
            limit = Image.MAX_IMAGE_PIXELS
            # Pillow only warns at its limit, and raises at twice the limit.
            if limit is not None and image.width * image.height > limit:
                raise ImageError(
                    f"{image.width} x {image.height} pixels are more than Pillow's limit of "
                    f"{limit}"
                )
            image.load()
            return _turned(_plain(image, channels), _orientation(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        head, rest = content[: 2**16], content[2**16 :]
        start = head.find(_EXIF)
        if head.startswith(b"\xff\xd8") and start > 0:
            # Pillow looks for a resolution in the EXIF of a JPEG, and fails if that is damaged;
            # so the image is opened again without its EXIF.
            image = open_image(head.replace(_EXIF, b"none\0\0") + rest, channels)
            return _turned(image, _exif_orientation(content[start:]))
        raise ImageError(f"no image, or in none of the formats {', '.join(formats)}") from error
    except Exception as error:
        # Damaged bytes surface as OSError, SyntaxError, ValueError, struct.error, EOFError,
        # MemoryError and more, depending on where in Pillow they are met.
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ImageError(f"cannot be decoded: {reason[:200]}") from error


def _turned(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = _TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The orientation in which an image is stored, from 1 for upright to 8, as EXIF counts."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and (found := _exif_orientation(exif)):
        return found
    try:
        # Pillow also reads XMP, EXIF that ImageMagick writes as text, and the tags of TIFF.
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1  # Pillow raises errors of a dozen kinds at EXIF that is damaged
    return value if isinstance(value, int) else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF, or None if there is none.

    It is parsed here, since Pillow stops at a tag whose value lies outside of the data.
    """
    while exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(f"{order}L", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for place in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, values, value = struct.unpack_from(f"{order}HHLH", exif, place)
        if (tag, kind, values) == (ExifTags.Base.Orientation, 3, 1) and 1 <= value <= 8:
            return int(value)
    return None


def _plain(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F":
        raise ImageError("floating point pixels have no fixed range; save it in 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    for mode in ("L" if image.mode in ("1", "L") else "RGB", "RGB" if channels == 3 else "L"):
        if image.mode != mode:
            image = image.convert(mode)
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Round 16-bit grey to 8 bits, also if stored in 32, where Pillow would clip it at 255."""
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("grey of 32 bits has no fixed range; save it in 8 or 16 bits")
    pixels = ((values + 128) // 257).astype(np.uint8)
    # Pillow inverts a TIFF whose zeros are white if it has 8 bits, and not if it has 16.
    tags = getattr(image, "tag_v2", {})
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        pixels = 255 - pixels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return Image.fromarray(pixels)


def resize(
    image: Image.Image,
    size: tuple[int, int],
    how: Literal["crop", "squash"],
    position: tuple[float, float] = (0.5, 0.5),
) -> NDArray[np.uint8]:
    """An image of another size as an array, uint8 (channels, height, width).

    ``"squash"`` averages boxes of pixels whatever the aspect ratio, as the downsampled ImageNet
    of Chrabaszcz et al. (arXiv 1707.08819) does. ``"crop"`` keeps the ratio and cuts off what
    is too long, with the antialiasing of Dhariwal and Nichol (arXiv 2105.05233): halved by
    averaging while it is twice as large as needed, the rest by bicubic interpolation. An image
    that has the size already stays as it is.

    Args:
        image: an image of mode ``"RGB"`` or ``"L"``.
        size: height and width in pixels.
        how: ``"crop"`` or ``"squash"``.
        position: where ``"crop"`` cuts, down and across, from 0 for the top and the left to 1
            for the bottom and the right.

    Raises:
        ValueError: `size`, `how` or `position` is none of these.

    Example:
        >>> resize(Image.new("RGB", (640, 480)), (64, 64), "crop").shape
        (3, 64, 64)
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"resize: size must be positive, got {size}")
    if not all(0 <= share <= 1 for share in position):
        raise ValueError(f"resize: position must be from 0 to 1, got {position}")
    if how not in ("crop", "squash"):
        raise ValueError(f"resize: how must be 'crop' or 'squash', got {how!r}")
    if image.size != (width, height):
        if how == "squash":
            image = image.resize((width, height), Image.Resampling.BOX)
        else:
            image = _scale_and_cut(image, height, width, position)
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _scale_and_cut(
    image: Image.Image, height: int, width: int, position: tuple[float, float]
) -> Image.Image:
    while image.height >= 2 * height and image.width >= 2 * width:
        half = image.width // 2, image.height // 2
        image = image.resize(half, Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    # Cut before scaling, since an image one pixel wide would grow to billions of pixels.
    tallest, widest = (math.ceil(_LONGEST * side / scale) for side in (height, width))
    image = _cut(image, min(image.height, tallest), min(image.width, widest), position)
    scaled = round(image.width * scale), round(image.height * scale)
    # Rounding may make the shorter side one pixel too short.
    scaled = max(width, scaled[0]), max(height, scaled[1])
    return _cut(image.resize(scaled, Image.Resampling.BICUBIC), height, width, position)


def _cut(
    image: Image.Image, height: int, width: int, position: tuple[float, float]
) -> Image.Image:
    top = int((image.height - height) * position[0])
    left = int((image.width - width) * position[1])
    return image.crop((left, top, left + width, top + height))
