"""Images from the Hugging Face hub, from folders, and from files of datasets' authors."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .batches import Source
from .data import ImageDataModule
from .decode import open_image, resize
from .errors import DataError, ImageError
from .formats import Arrays, find_format, read_arrays

__all__ = ["Images"]

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Images(ImageDataModule):
    """Images of any size and format, cut or scaled to one shape; labels if there are any.

    What `path` names is, in this order:

    - a folder with the CIFAR-10 or CIFAR-100 pickles, or the npz files of the downsampled
      ImageNet, as their authors publish them, see `formats`;
    - a dataset that Hugging Face's `save_to_disk` wrote;
    - a folder of parquet or arrow files, or a single one;
    - a folder of images; subfolders `train`, `validation` (or `val`) and `test` are splits,
      those below them (or at the top) are classes, as Hugging Face's `imagefolder` reads it;
    - a dataset of the Hugging Face hub, such as `cifar10` or `imagenet-1k`.

    Images are decoded when they are needed, in `num_workers` processes.

    Args:
        path: see above.
        image_shape: (channels, height, width) that images come out with; 1 channel for grey.
        batch_size: images in a batch of one process.
        num_workers: processes that read images, for each process that trains.
        name: configuration of a dataset of the hub that has several.
        train_split: name of the split for training.
        val_split: name of the one for validation, or the share of training images that is held
            out for it, drawn with a seed that is always the same.
        test_split: name of the one for testing, or a share in the same way; `all` for all
            images there are, with nothing left to train on.
        resize: `crop` keeps the aspect ratio and cuts off what is too long, `squash` scales
            both sides as the downsampled ImageNet does, see `decode.resize`.
        random_crop: in training, cut at a random place in place of the middle.
        flip: mirror half of the training images.
        permute_seed: put the pixels of all images in one random order, drawn with this seed.
        periodic_shift: roll each image over its edges by a random number of pixels.
        on_bad_image: `raise` or `skip`, see `ImageDataModule`.

    Raises:
        ValueError: an argument that is none of these.
        DataError: on setup, if there is no such data, no such split, or nothing to read.
    """

    def __init__(
        self,
        path: str,
        image_shape: Sequence[int] = (3, 32, 32),
        batch_size: int = 64,
        num_workers: int = 0,
        *,
        name: str | None = None,
        train_split: str = "train",
        val_split: str | float = 0.05,
        test_split: str | float = "test",
        resize: Literal["crop", "squash"] = "crop",
        random_crop: bool = False,
        flip: bool = False,
        permute_seed: int | None = None,
        periodic_shift: bool = False,
        on_bad_image: str = "raise",
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            flip=flip,
            permute_seed=permute_seed,
            periodic_shift=periodic_shift,
            on_bad_image=on_bad_image,
        )
        channels, height, width = image_shape
        if channels not in (1, 3) or min(height, width) < 1:
            raise ValueError(
                f"Images: image_shape must be (1 or 3, height, width), got {tuple(image_shape)}"
            )
        for key, share in (("val_split", val_split), ("test_split", test_split)):
            if not isinstance(share, str) and not 0 < share < 1:
                raise ValueError(f"Images: {key} must be a name or from 0 to 1, got {share}")
        if resize not in ("crop", "squash"):
            raise ValueError(f"Images: resize must be 'crop' or 'squash', got {resize!r}")
        self.path = path
        self.image_shape = (channels, height, width)
        self.name = name
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.resize = resize
        self.random_crop = random_crop

    def prepare_data(self) -> None:
        _ = self._splits  # downloads, in one process on each machine

    def setup(self, stage: str) -> None:
        if hasattr(self, "sources"):
            return
        named = self._splits
        if self.splits["test"] == "all":
            everything = [_Part(images, None) for images in named.values()]
            self.sources = {"test": self._source(_Joined(everything))}
            return
        for split in self.splits.values():
            if isinstance(split, str) and split not in named:
                raise DataError(
                    f"{self.path} has no split {split!r}, but {', '.join(map(repr, named))}; "
                    "set train_split, val_split or test_split, the last two to a share if need "
                    "be"
                )
        train = named[str(self.splits["train"])]
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        self.sources = {}
        for split in ("test", "val"):
            given = self.splits[split]
            if isinstance(given, str):
                self.sources[split] = self._source(_Part(named[given], None))
            else:
                count = max(1, round(given * len(train)))
                held_out, order = order[:count], order[count:]
                self.sources[split] = self._source(_Part(train, held_out))
        self.sources["train"] = self._source(_Part(train, order))

    def _source(self, rows: "_Part | _Joined") -> Source:
        if not len(rows):
            raise DataError(f"{self.path} holds no images")
        return _Resized(rows, self.image_shape, self.resize, self.random_crop)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """The splits by their names."""
        folder = Path(self.path).expanduser()
        try:
            form = find_format(folder)
        except PermissionError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror}") from error
        if form is not None:
            return {split: read_arrays(folder, split) for split in ("train", "test")}
        return {split: _Rows(rows) for split, rows in self._load_rows(folder).items()}

    def _load_rows(self, path: Path) -> Any:
        import datasets

        try:
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                loaded = datasets.load_from_disk(str(path))
                return loaded if isinstance(loaded, dict) else {"train": loaded}
            if path.is_file():
                kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix)
                if kind is None:
                    raise DataError(f"{path} is neither a folder nor a parquet or arrow file")
                return datasets.load_dataset(kind, data_files=str(path))
            if path.is_dir():
                kinds = (k for k in ("parquet", "arrow") if next(path.rglob(f"*.{k}"), None))
                if next(kinds, None):
                    return datasets.load_dataset(str(path))
                folder, files = _split_files(path)
                return datasets.load_dataset(
                    "imagefolder", data_dir=str(folder), data_files=files
                )
            if self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
                raise DataError(f"there is no folder or file {self.path}")
            return datasets.load_dataset(self.path, self.name)
        except DataError:
            raise
        except ConnectionError as error:
            raise DataError(
                f"{self.path} is no folder here, and could not be downloaded from the hub: "
                f"{_first_line(error)}; what has arrived is kept, start again to go on"
            ) from error
        except Exception as error:
            # The library and those below it raise a hundred kinds of errors for what is wrong
            # with files, accounts and networks.
            raise DataError(f"{self.path} could not be loaded: {_first_line(error)}") from error


def _split_files(path: Path) -> tuple[Path, dict[str, list[str]]]:
    """The folder in `path` that has the images, and which of its files make which split.

    `datasets` finds splits by going through all files some forty times, which takes long where
    there are many, and takes a class of the name dev for one.
    """
    entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__"))]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    named = [name for name in folders if name.lower() in _SPLIT_FOLDERS]
    others = [name for name in folders if name not in named]
    if len(entries) == len(others) == 1:
        return _split_files(entries[0])
    if not _has_images(path):
        raise DataError(f"{path} holds no images")
    if named and others:
        raise DataError(
            f"{path} has the folders {', '.join(named)}, which are splits, beside "
            f"{', '.join(others[:3])}{', ...' if others[3:] else ''}; move these away or, if "
            "all are classes, all of them into a folder train"
        )
    splits: dict[str, list[str]] = {}
    for name in sorted(named, key=lambda name: list(_SPLIT_FOLDERS).index(name.lower())):
        if _has_images(path / name):
            splits.setdefault(_SPLIT_FOLDERS[name.lower()], []).append(f"{name}/**")
    return path, splits or {"train": ["**"]}


def _has_images(folder: Path) -> bool:
    known = Image.registered_extensions()
    return any(file.suffix.lower() in known for file in folder.rglob("*"))


class _Rows:
    """A split of a Hugging Face dataset: images, still encoded, and labels."""

    def __init__(self, rows: Any) -> None:
        import datasets

        features = rows.features
        image = _column(features, datasets.Image, _IMAGE_COLUMNS)
        if image is None:
            raise DataError(
                f"there is no column of images among {', '.join(features)}; it should be of "
                "the type Image, or be named image"
            )
        self.image = image
        # Labels by other names, as text or several at once, are none.
        numbers = {k: f for k, f in features.items() if "int" in str(getattr(f, "dtype", ""))}
        self.label = _column(numbers, datasets.ClassLabel, _LABEL_COLUMNS)
        columns = [c for c in (self.image, self.label) if c is not None]
        classes = getattr(features.get(self.label), "num_classes", None)
        self.labels = None if classes is None else range(-1, classes)
        rows = rows.select_columns(columns)
        if isinstance(features[image], datasets.Image):
            # Decoded by us, so that an error can name its image.
            rows = rows.cast_column(image, datasets.Image(decode=False))
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, channels: int) -> tuple[Image.Image, int | None]:
        row = self.rows[index]
        encoded = row[self.image]
        if isinstance(encoded, dict):
            # Bytes that are empty are a damaged file, not a missing one.
            content = encoded.get("bytes")
            encoded = encoded.get("path") if content is None else content
        if not isinstance(encoded, bytes | str):
            raise ImageError("there is nothing in its row")
        label = row[self.label] if self.label else None
        known = self.labels
        if known is not None and label is not None and label not in known:
            raise DataError(f"image {index} has the label {label}, of {known[-1] + 1} classes")
        return open_image(encoded, channels), None if label is None else int(label)

    def name(self, index: int) -> str:
        encoded = self.rows[index][self.image]
        path = encoded.get("path") if isinstance(encoded, dict) else None
        return str(path or index)


def _column(features: Any, kind: type, names: Sequence[str]) -> str | None:
    typed = [name for name, feature in features.items() if isinstance(feature, kind)]
    return next(iter([*typed, *(name for name in names if name in features)]), None)


class _Part:
    """Some images of a split, or all of them."""

    def __init__(self, images: _Rows | Arrays, order: Sequence[int] | None) -> None:
        self.images = images
        self.order = range(len(images)) if order is None else np.asarray(order)

    def __len__(self) -> int:
        return len(self.order)

    def locate(self, index: int) -> tuple[Any, int]:
        return self.images, int(self.order[index])


class _Joined:
    """All images of several splits."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def locate(self, index: int) -> tuple[Any, int]:
        for part in self.parts:
            if index < len(part):
                return part.locate(index)
            index -= len(part)
        raise IndexError(index)


class _Resized:
    """Images that are decoded and brought to one shape when they are read."""

    def __init__(
        self,
        rows: _Part | _Joined,
        image_shape: tuple[int, int, int],
        how: Literal["crop", "squash"],
        random_crop: bool,
    ) -> None:
        self.rows = rows
        self.image_shape = image_shape
        self.how = how
        self.random_crop = random_crop

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, rng: Random | None) -> tuple[Tensor, int | None]:
        images, row = self.rows.locate(index)
        channels, *size = self.image_shape
        try:
            if isinstance(images, Arrays):
                pixels, label = images[row]
                if pixels.shape == self.image_shape:
                    return torch.from_numpy(pixels), label
                image = Image.fromarray(pixels.transpose(1, 2, 0))
                image = image.convert("L" if channels == 1 else "RGB")
            else:
                image, label = images.read(row, channels)
            position = (0.5, 0.5)
            if self.random_crop and rng:
                position = (rng.random(), rng.random())
            pixels = resize(image, (size[0], size[1]), self.how, position)
        except ImageError as error:
            raise ImageError(f"image {index} ({self.name(index)}): {error}") from error
        return torch.from_numpy(pixels), label

    def name(self, index: int) -> str:
        """The file of an image, or its number where it has none."""
        images, row = self.rows.locate(index)
        return images.name(row) if isinstance(images, _Rows) else str(row)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
