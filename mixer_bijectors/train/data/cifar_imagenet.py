"""Datasets in their authors' own files: CIFAR's pickles and the downsampled ImageNet's npz.

CIFAR-10 and CIFAR-100: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
ImageNet32 and ImageNet64: Chrabaszcz et al., arXiv 1707.08819.
"""

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..io.errors import DataError
from .labels import Labels
from .pickles import read_pickle
from .split import Item, Split

__all__ = ["Arrays", "find_format", "read_arrays"]


class Arrays(Split):
    """Labelled 8-bit images in a few large arrays, which are neither copied nor joined.

    An image is a copy, uint8 (channels, height, width). Arrays that are mapped from a file are
    mapped again in a process that this is sent to.

    Args:
        images: arrays of the same image shape, each uint8 (images, channels, height, width).
        labels: the labels of all of them.
    """

    def __init__(self, images: list[NDArray[np.uint8]], labels: Labels) -> None:
        self.images = images
        self.labels: Labels | None = labels
        self.ends = np.cumsum([len(batch) for batch in images])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Item:
        which = int(np.searchsorted(self.ends, index, side="right"))
        batch = self.images[which]
        pixels = np.array(batch[index - int(self.ends[which])])
        return Item(pixels, self.label(index), str(index))

    def __getstate__(self) -> dict[str, Any]:
        # numpy pickles a mapped array whole, 15 GB of them for ImageNet64.
        images = [
            (batch.filename, np.uint8, "r", batch.offset, batch.shape)
            if isinstance(batch, np.memmap)
            else batch
            for batch in self.images
        ]
        return {**self.__dict__, "images": images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = [np.memmap(*b) if isinstance(b, tuple) else b for b in state["images"]]
        self.__dict__.update(state, images=images)


def find_format(folder: Path) -> Literal["cifar", "npz"] | None:
    """The authors whose files a folder holds, by their names; None for neither."""
    if _cifar_folders(folder):
        return "cifar"
    if any((folder / name).is_file() for names in _NPZ.values() for name in names):
        return "npz"
    return None


def read_arrays(folder: Path, split: str) -> Arrays:
    """The images of one split of CIFAR-10, CIFAR-100, ImageNet32 or ImageNet64.

    The files of CIFAR may lie in the folder or in the subfolder that their archive makes. Files
    of ImageNet that are stored in the zip without compression are mapped, the others read. Its
    `test` is what the authors call validation, since labels of test images are not public.

    Args:
        folder: where the files are.
        split: ``"train"`` or ``"test"``.

    Raises:
        DataError: a file is missing, damaged or holds something else than it should.
    """
    found = _cifar_folders(folder)
    if len(found) > 1:
        names = " and ".join(str(place) for place, _ in found)
        raise DataError(f"{folder}: more than one data set, in {names}; give one of them")
    if found:
        ((place, cifar),) = found
        paths = _paths(place, cifar.files, split)
        parts = [_cifar_batch(path, cifar) for path in paths]
        class_names = _cifar_names(place, cifar)
    elif find_format(folder):
        paths = _paths(folder, _NPZ, split)
        parts = [_npz_batch(path) for path in paths]
        class_names = None
    else:
        raise DataError(f"{folder}: no pickles of CIFAR and no npz files of ImageNet in it")
    images = [batch for batch, _ in parts]
    side = images[0].shape[3]
    for path, batch in zip(paths, images):
        if batch.shape[3] != side:
            raise DataError(
                f"{path}: images of {batch.shape[3]} x {batch.shape[3]} pixels, where those of "
                f"{paths[0].name} have {side} x {side}"
            )
    labels = np.concatenate([labels for _, labels in parts])
    return Arrays(images, Labels(labels, class_names))


def _paths(folder: Path, files: dict[str, list[str]], split: str) -> list[Path]:
    missing = [name for name in files[split] if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: missing {', '.join(missing)}; download the set again")
    return [folder / name for name in files[split]]


def _checked(
    path: Path, data: Any, labels: Any, first: int, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (images, 3, side, side) and labels from 0, out of rows and labels from `first`."""
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2):
        raise DataError(f"{path}: the images must be uint8 (images, pixels), got {_kind(data)}")
    count, columns = data.shape
    side = math.isqrt(columns // 3)
    if not (count and columns and 3 * side * side == columns):
        raise DataError(
            f"{path}: {count} rows of {columns} values are no square images of three channels"
        )
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        # Objects, since a label in a damaged file may be too large for int64.
        labels = np.array(labels, dtype=object)
    elif not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iu"):
        raise DataError(f"{path}: the labels must be whole numbers, got {_kind(labels)}")
    if labels.shape != (count,):
        raise DataError(f"{path}: {count} images but labels of shape {labels.shape}")
    wrong = np.flatnonzero((labels < first) | (labels >= first + num_classes))
    if len(wrong):
        raise DataError(
            f"{path}: the label of image {wrong[0]} is not from {first} to "
            f"{first + num_classes - 1}"
        )
    return data.reshape(count, 3, side, side), labels.astype(np.int64) - first


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "nothing" if value is None else type(value).__name__


# CIFAR


class _Cifar(NamedTuple):
    folder: str
    num_classes: int
    labels: str
    names: str
    meta: str
    files: dict[str, list[str]]


_TEN = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_HUNDRED = {"train": ["train"], "test": ["test"]}
_CIFARS = (
    _Cifar("cifar-10-batches-py", 10, "labels", "label_names", "batches.meta", _TEN),
    _Cifar("cifar-100-python", 100, "fine_labels", "fine_label_names", "meta", _HUNDRED),
)


def _cifar_folders(folder: Path) -> list[tuple[Path, _Cifar]]:
    return [
        (place, cifar)
        for cifar in _CIFARS
        for place in (folder, folder / cifar.folder)
        if any((place / name).is_file() for names in cifar.files.values() for name in names)
    ]


def _cifar_names(place: Path, cifar: _Cifar) -> list[str] | None:
    """The names of the classes, which are in a file that nothing else needs."""
    if not (place / cifar.meta).is_file():
        return None
    names = read_pickle(place / cifar.meta, [cifar.names]).get(cifar.names)
    if not isinstance(names, list) or len(names) != cifar.num_classes:
        raise DataError(
            f"{place / cifar.meta}: it does not name {cifar.num_classes} classes; download the "
            "set again"
        )
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _cifar_batch(path: Path, cifar: _Cifar) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    keys = ("data", cifar.labels)
    entries = read_pickle(path, keys)
    for key in keys:
        if key not in entries:
            raise DataError(f"{path}: the pickle has no entry {key!r}")
    data, labels = (entries[key] for key in keys)
    images, labels = _checked(path, data, labels, 0, cifar.num_classes)
    if images.shape[2] != 32:
        raise DataError(f"{path}: images of CIFAR are of 32 pixels, not {images.shape[2]}")
    return images, labels


# downsampled ImageNet

_NPZ = {"train": [f"train_data_batch_{i}.npz" for i in range(1, 11)], "test": ["val_data.npz"]}


def _npz_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with zipfile.ZipFile(path) as archive:
            data, labels = (_npz_array(path, archive, name) for name in ("data", "labels"))
    except DataError:
        raise
    except Exception as error:
        # A damaged file surfaces as half a dozen kinds, from zipfile, zlib and numpy.
        raise DataError(f"{path}: the npz file is cut short or damaged") from error
    # The authors count the 1000 classes from 1.
    return _checked(path, data, labels, 1, 1000)


def _npz_array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of a zip, mapped where it is stored as it is."""
    if f"{name}.npy" not in archive.namelist():
        raise DataError(f"{path}: the npz file has no array '{name}'")
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        header = "read_array_header_{}_{}".format(*np.lib.format.read_magic(member))
        shape, fortran, dtype = getattr(np.lib.format, header)(member)
        start = member.tell()
    if dtype.kind not in "biuf":
        raise DataError(f"{path}: the array '{name}' is of dtype {dtype}, not of numbers")
    # Checked before anything of that size is allocated.
    if info.file_size - start != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path}: the array '{name}' is not as long as its header says")
    if info.compress_type == zipfile.ZIP_STORED and info.file_size > start and not fortran:
        # Behind a local header, whose two last fields may be of other sizes than in the
        # directory at the end of the zip.
        with path.open("rb") as file:
            file.seek(info.header_offset)
            name, extra = struct.unpack("<26xHH", file.read(30))
        start += info.header_offset + 30 + int(name) + int(extra)
        return np.memmap(path, dtype, "r", start, shape)
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
