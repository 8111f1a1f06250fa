"""Digests of a model and of images, by which predictions are known to be of these."""

import hashlib
import json
import os
import re
from stat import S_ISREG
from typing import Any

from torch import Tensor, nn

from ..data.batches import Source
from ..data.image_data_module import ImageDataModule

__all__ = ["as_text", "digest_of_images", "digest_of_model", "settings"]


def settings(thing: Any) -> dict[str, str]:
    """Attributes of a data module or of a layer that change its results, as text."""
    other = ("datasets", "num_workers", "sources", "trainer", "training")
    return {
        key: as_text(value)
        for key, value in vars(thing).items()
        if not key.startswith("_") and key not in other
    }


def as_text(value: Any) -> str:
    """A setting in the same words in each process, with all of a path that is there."""
    if isinstance(value, str | os.PathLike):
        path = os.path.expanduser(os.fspath(value))
        return os.path.realpath(path) if os.path.exists(path) else os.fsdecode(value)
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


def digest_of_images(data: ImageDataModule, split: str, size: int | None) -> str:
    """A digest of which images a split has, by their names and by when files were written."""
    source: Source = data.source(split)
    digest = hashlib.sha256()
    for index in range(min(len(source), size or len(source))):
        name = source.name(index)
        digest.update(f"{name}\n{_state(name)}\n".encode("utf8", "surrogateescape"))
    for value in vars(source).values():
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().numpy().tobytes())
    # Many images may be in one file, such as a table, which is no file by the name of an image.
    for value in vars(data).values():
        if isinstance(value, str | os.PathLike) and value:
            path = os.path.expanduser(os.fspath(value))
            digest.update(_state(path).encode())
            inside = [os.path.join(f, name) for f, _, names in os.walk(path) for name in names]
            digest.update("\n".join(map(_state, sorted(inside))).encode())
    return digest.hexdigest()


def _state(path: str | bytes) -> str:
    """The path, size and time of change of a file as text; empty if it is not a file."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return ""
    if not S_ISREG(stat.st_mode):
        return ""
    return f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def digest_of_model(model: nn.Module) -> str:
    """A digest of all layers and of their settings, as other ones may fit the same weights."""
    layers = [[type(layer).__name__, settings(layer)] for layer in model.modules()]
    return hashlib.sha256(json.dumps([str(model), layers], default=str).encode()).hexdigest()
