"""Images and labels in the columns of a table, a dataset of Hugging Face's `datasets`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..io.errors import DataError
from ..io.names import printable
from .labels import Labels, first_labels, label_columns, labels_of_column
from .split import Item, Split

__all__ = ["Rows"]

_IMAGE_COLUMNS = ("image", "img")


class Rows(Split):
    """A split of a Hugging Face dataset: images, still encoded, and labels.

    Args:
        rows: a `datasets.Dataset`.
        left_out: where to put which columns are not read, by the reason.
        folder: where files that the table names by relative paths lie.

    Attributes:
        labels: of the images, or None.

    Raises:
        DataError: there is no column of images, or one of labels that are none.
    """

    def __init__(
        self, rows: Any, left_out: dict[str, list[str]], folder: Path | None = None
    ) -> None:
        import datasets

        features = rows.features
        named = [name for name in _IMAGE_COLUMNS if name in features]
        images = _columns(features, datasets.Image, named)
        if not images:
            raise DataError(
                f"there is no column of images among {', '.join(features)}; it should be of "
                "the type Image, or be named image"
            )
        image, *left_out["another column of images"] = images
        _check_images(image, features[image])

        def read(label: str) -> Labels | None:
            column = every.select_columns([label]).with_format("arrow")[:][label]
            return labels_of_column(column, getattr(features[label], "names", None))

        every = rows
        likely = _columns(features, datasets.ClassLabel, label_columns(features))
        self.labels = first_labels(likely, features, read, left_out)
        rows = rows.select_columns([image])
        if isinstance(features[image], datasets.Image):
            # Decoded later, so that an error can name its image.
            rows = rows.cast_column(image, datasets.Image(decode=False))
        self.image = image
        self.rows = rows
        self.folder = folder or Path()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        encoded, path = self.rows[index][self.image], None
        if isinstance(encoded, dict):
            path = encoded.get("path")
            # Bytes that are empty are a damaged file, not a missing one.
            encoded = path if encoded.get("bytes") is None else encoded["bytes"]
        if isinstance(encoded, str):
            # Not from the working directory, where another file may have the same name.
            path = encoded = str(self.folder / encoded)
        return Item(encoded, self.label(index), printable(str(path or index)))


def _check_images(name: str, feature: Any) -> None:
    """Raise a DataError if a column of images holds no encoded images, such as arrays."""
    import datasets

    if isinstance(feature, datasets.Image):
        return
    parts = feature if isinstance(feature, dict) else {"bytes": feature}
    kinds = {getattr(parts.get(key), "dtype", "null") for key in ("bytes", "path")} - {"null"}
    if not kinds or kinds - {"binary", "large_binary", "string", "large_string"}:
        raise DataError(
            f"the column {name} holds no image files but {feature}; write images, with "
            "datasets' type Image, or the bytes or paths of files"
        )


def _columns(features: Any, kind: type, names: Sequence[str]) -> list[str]:
    """The columns of a kind, and those of the names; the first is the likeliest."""
    typed = [name for name, feature in features.items() if isinstance(feature, kind)]
    order = list(dict.fromkeys([*names, *typed]))
    return sorted(order, key=lambda name: name not in typed)
