"""Tables of images: parquet and arrow files, and other datasets of Hugging Face."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .decode import open_image
from .errors import DataError, ImageError
from .folders import SPLITS
from .labels import LABEL_COLUMNS, Labels, labels_of_column
from .names import printable, some
from .tree import Tree

__all__ = ["Rows", "first_line", "load_tables", "split_tables"]

_IMAGE_COLUMNS = ("image", "img")


def split_tables(tree: Tree) -> dict[str, list[str]]:
    """Which parquet or arrow files make which split, by their names, as `datasets` has it.

    Folders that are named like splits count first, then words in the names of files, and
    without both all are in `train`. Files `data/NAME-00000-of-00001.parquet` are of NAME.
    """
    words = SPLITS | dict.fromkeys(("eval", "evaluation"), "test")

    def named(text: str) -> str | None:
        found = {words[w] for w in re.split(r"[-._ 0-9/\\]+", text.lower()) if w in words}
        if len(found) > 1:
            raise DataError(
                f"{printable(text)} names the splits {some(sorted(found))}; rename it"
            )
        return next(iter(found), None)

    def shards(path: str) -> str | None:
        match = re.fullmatch(r"(?:.*/)?data/(\w+)-\d{5}-of-\d{5}.*", path.replace(os.sep, "/"))
        return match and match[1]

    for find in (
        shards,
        lambda path: named(os.path.dirname(path)),
        lambda path: named(os.path.basename(path)),
    ):
        splits: dict[str, list[str]] = {}
        for path in tree.tables:
            splits.setdefault(find(path) or "", []).append(path)
        if unknown := splits.pop("", None):
            if not splits:
                continue
            tree.left_out["of no split"] += unknown
        break
    else:
        splits = {"train": tree.tables}
    return {
        split: [os.path.join(tree.root, path) for path in paths]
        for split, paths in splits.items()
    }


def load_tables(files: Mapping[str, Sequence[str]]) -> Mapping[str, Any]:
    """The rows of parquet or arrow files, by split.

    Raises:
        DataError: a file is damaged, or has other columns than the first.
    """
    import datasets

    kinds = {Path(path).suffix.lower()[1:] for paths in files.values() for path in paths}
    if len(kinds) > 1:
        raise DataError("there are both parquet and arrow files; name one of them, or a folder")
    columns: list[str] | None = None
    filled: dict[str, list[str]] = {}
    for split, paths in files.items():
        for path in paths:
            try:
                names, rows = _columns(path)
            except Exception as error:
                raise DataError(
                    f"{printable(path)} cannot be read: {first_line(error)}"
                ) from error
            columns, first = columns or names, next(iter(files.values()))[0]
            if sorted(names) != sorted(columns):
                raise DataError(
                    f"{printable(path)} has the columns {', '.join(names)}, and "
                    f"{printable(first)} {', '.join(columns)}; they must be the same"
                )
            if rows:
                # It takes patterns, in which some characters mean something.
                filled.setdefault(split, []).append(glob.escape(os.path.abspath(path)))
    if not filled:
        raise DataError(f"{printable(next(iter(files.values()))[0])} holds no images")
    return datasets.load_dataset(kinds.pop(), data_files=filled)


def _columns(path: str) -> tuple[list[str], int]:
    """The columns of a file, and how many rows it has, or 1 where that takes reading them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.lower().endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            return file.schema_arrow.names, file.metadata.num_rows
    with pa.memory_map(path) as source:
        try:
            return pa.ipc.open_stream(source).schema.names, 1
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_file(source).schema.names, 1


class Rows:
    """A split of a Hugging Face dataset: images, still encoded, and labels.

    Args:
        rows: a `datasets.Dataset`.
        left_out: where to put which columns are not read, by the reason.

    Raises:
        DataError: there is no column of images, or one of labels that are none.
    """

    def __init__(self, rows: Any, left_out: dict[str, list[str]]) -> None:
        import datasets

        features = rows.features
        image, images = _column(features, datasets.Image, _IMAGE_COLUMNS)
        if image is None:
            raise DataError(
                f"there is no column of images among {', '.join(features)}; it should be of "
                "the type Image, or be named image"
            )
        label, labels = _column(features, datasets.ClassLabel, LABEL_COLUMNS)
        self.labels: Labels | None = None
        if label is not None:
            names = getattr(features[label], "names", None)
            column = rows.select_columns([label]).with_format("arrow")[:][label]
            self.labels = labels_of_column(column, names)
            if self.labels is None:
                left_out["no column of numbers of classes"].append(label)
        left_out["another column of images"] += images
        left_out["another column of labels"] += labels
        rows = rows.select_columns([image])
        if isinstance(features[image], datasets.Image):
            # Decoded by us, so that an error can name its image.
            rows = rows.cast_column(image, datasets.Image(decode=False))
        self.image = image
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, channels: int) -> Image.Image:
        """The image."""
        encoded = self.rows[index][self.image]
        if isinstance(encoded, dict):
            # Bytes that are empty are a damaged file, not a missing one.
            content = encoded.get("bytes")
            encoded = encoded.get("path") if content is None else content
        if not isinstance(encoded, bytes | str):
            raise ImageError("there is nothing in its row")
        return open_image(encoded, channels)

    def name(self, index: int) -> str:
        """The file of an image, or its number where it has none."""
        encoded = self.rows[index][self.image]
        path = encoded.get("path") if isinstance(encoded, dict) else None
        return printable(str(path or index))


def _column(features: Any, kind: type, names: Sequence[str]) -> tuple[str | None, list[str]]:
    """The column that is of a kind, or has one of the names, and others of that kind."""
    typed = [name for name, feature in features.items() if isinstance(feature, kind)]
    named = [name for name in names if name in features]
    found = [*(n for n in named if n in typed), *typed] or named
    chosen = next(iter(found), None)
    return chosen, [name for name in typed if name != chosen]


def first_line(error: BaseException) -> str:
    """What was wrong at first, behind what `datasets` wraps it in, in one line."""
    from datasets.exceptions import DatasetGenerationError

    while isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]
