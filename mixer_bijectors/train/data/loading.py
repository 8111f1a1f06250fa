"""Finds the splits of images of a path or a name, in any of the known forms."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..io.errors import DataError
from ..io.names import first_line, printable
from .cifar_imagenet import find_format, read_arrays
from .folders import read_folder
from .labels import join_labels
from .split import Split
from .table_files import load_tables, split_tables, unambiguous
from .tables import Rows
from .tree import TABLES, list_files

__all__ = ["Found", "load_splits"]

# What the hub takes for the name of a dataset.
_HUB = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)


class Found(NamedTuple):
    """Images by their splits, and by the reason what else was there and is left out."""

    splits: Mapping[str, Split]
    left_out: Mapping[str, Sequence[str]]


def load_splits(
    path: str, name: str | None, is_path: bool, train: str, used: Collection[str] | None
) -> Found:
    """Find the splits of images that `path` names, see `Images`.

    Args:
        path: a folder or a file, or the name of a dataset of the hub.
        name: configuration of a dataset of the hub.
        is_path: it is no name of the hub.
        train: the split whose order of the classes all others follow.
        used: the splits that images are taken from, None for all; others have no labels.

    Raises:
        DataError: there is nothing, or it cannot be read, or not in one way.
    """
    try:
        return _load(path, name, _place(path, is_path), train, used)
    except DataError as error:
        # Errors of classes and columns do not know the path.
        known = (printable(path), printable(os.path.expanduser(path)))
        if any(place in str(error) for place in known):
            raise
        raise DataError(f"{known[0]}: {error}") from error
    except PermissionError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}") from error
    except ConnectionError as error:
        raise DataError(
            f"{printable(path)} is no folder here, and could not be downloaded from the hub: "
            f"{first_line(error)}; what has arrived is kept, start again to go on"
        ) from error
    except Exception as error:
        # The library and those below it raise a hundred kinds of errors for what is wrong
        # with files, accounts and networks.
        raise DataError(
            f"{printable(path)} could not be loaded: {first_line(error)}"
        ) from error


def _place(path: str, is_path: bool) -> Path | None:
    """The place of the images, or None if they are on the hub."""
    # Not resolved, so that an image is called by the path that leads to it here.
    place = Path(path).expanduser().absolute()
    if place.exists():
        return place
    # A name on the hub may look like a path, but not like one into a folder that is here.
    is_path = is_path or place.suffix.lower() in TABLES or os.path.lexists(place)
    if is_path or not _HUB.fullmatch(path) or ("/" in path and place.parent.exists()):
        raise DataError(f"there is no folder or file {printable(path)}")
    return None


def _load(
    path: str, name: str | None, place: Path | None, train: str, used: Collection[str] | None
) -> Found:
    if place is None:
        import datasets

        return _rows(datasets.load_dataset(path, name), train, used)
    if name is not None:
        raise DataError(
            f"{printable(path)} is here, and not on the hub, where the name {name!r} "
            "would mean a configuration; leave name out, or give another path"
        )
    if find_format(place) is not None:
        arrays = {split: read_arrays(place, split) for split in ("train", "test")}
        return Found(arrays, {})
    if any((place / file).exists() for file in ("dataset_dict.json", "state.json")):
        import datasets

        loaded = datasets.load_from_disk(unambiguous(str(place)))
        loaded = loaded if isinstance(loaded, dict) else {"train": loaded}
        return _rows(loaded, train, used, place)
    if place.is_file():
        if place.suffix.lower() not in TABLES:
            raise DataError(
                f"{printable(path)} is neither a folder nor a parquet or arrow file"
            )
        return _rows(load_tables({"train": [str(place)]}), train, used, place.parent)
    tree = list_files(str(place))
    if not tree.tables:
        return Found(read_folder(tree, used), tree.left_out)
    if tree.images:
        image, table = (printable(files[0]) for files in (tree.images, tree.tables))
        raise DataError(
            f"{printable(path)} holds images, such as {image}, and tables, such as {table}; "
            "name one of both, or move it away"
        )
    return _rows(load_tables(split_tables(tree)), train, used, place, tree.left_out)


def _rows(
    loaded: Mapping[str, Any],
    train: str,
    used: Collection[str] | None,
    folder: Path | None = None,
    left_out: dict[str, list[str]] | None = None,
) -> Found:
    left_out = defaultdict(list) if left_out is None else left_out
    splits = {split: Rows(rows, left_out, folder) for split, rows in loaded.items()}
    first = sorted(splits, key=lambda split: split != train)
    joined = join_labels(
        {split: splits[split].labels for split in first if used is None or split in used}
    )
    for split, rows in splits.items():
        rows.labels = joined.get(split)
    return Found(splits, left_out)
