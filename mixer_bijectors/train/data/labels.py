"""Labels as whole numbers from 0, with the names of their classes where these are known."""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..io.errors import DataError
from ..io.names import printable

__all__ = [
    "Labels",
    "first_labels",
    "join_labels",
    "label_columns",
    "labels_of_column",
    "labels_of_folders",
]

# The likeliest first.
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "coarse_label")
_LIKE_LABELS = ("label", "class", "target", "categor")
_LIKE_SPLITS = ("split", "subset", "partition")


class Labels(NamedTuple):
    """The label of each image of a split.

    Attributes:
        values: (images,), from 0; -1 for an image without a label.
        names: of the classes, or None where they have numbers alone.
    """

    values: NDArray[np.int64]
    names: Sequence[str] | None = None


def label_columns(columns: Iterable[str]) -> list[str]:
    """The columns with a name of labels, the likeliest first, whatever its case and spaces.

    Example:
        >>> label_columns(["image", "Target", " label"])
        [' label', 'Target']
    """
    plain = {column: column.strip().casefold() for column in columns}
    found = [column for column in plain if plain[column] in _LABEL_COLUMNS]
    return sorted(found, key=lambda column: _LABEL_COLUMNS.index(plain[column]))


def first_labels(
    likely: Sequence[str],
    columns: Iterable[str],
    read: Callable[[str], Labels | None],
    left_out: dict[str, list[str]],
    file: str = "",
) -> Labels | None:
    """Labels out of the likeliest column that holds some.

    Args:
        likely: the columns that are read, the likeliest first.
        columns: all columns of the table.
        read: the labels in a column, if it holds numbers of classes.
        left_out: where to put which columns are not read, by the reason.
        file: the table, if it has a name.
    """
    labels = None
    skipped = []
    for column in likely:
        if labels is not None:
            skipped.append((column, "another column of labels"))
        elif (labels := read(column)) is None:
            skipped.append((column, "no column of whole numbers from 0"))
    if not likely:
        skipped += [
            (column, "for labels, name it label")
            for column in columns
            if any(word in column.casefold() for word in _LIKE_LABELS)
        ]
    skipped += [
        (column, "splits are folders or files")
        for column in columns
        if column.strip().casefold() in _LIKE_SPLITS
    ]
    for column, reason in skipped:
        name = f"{column.strip()} of {file}" if file else column
        if name not in left_out[reason]:
            left_out[reason].append(name)
    return labels


def labels_of_column(column: Any, names: Sequence[str] | None = None) -> Labels | None:
    """Labels out of a column of a table; None if it holds no numbers of classes.

    Whole numbers count, also as floating point, which they become where one is missing, and
    so do truth values. Text, fractions, lists and negative numbers are no numbers of classes.

    Args:
        column: an array of pyarrow.
        names: of the classes; with them -1 stands for an image without a label, as in the test
            splits of many datasets.

    Raises:
        DataError: there are fewer classes than a label says.

    Example:
        >>> import pyarrow as pa
        >>> labels_of_column(pa.array([1.0, None, 0.0])).values
        array([ 1, -1,  0])
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_boolean(kind):
        names = ("False", "True")
    elif pa.types.is_floating(kind):
        if pa.types.is_float16(kind):
            column = column.cast(pa.float32())  # pyarrow has few functions of halves
        column = pc.if_else(pc.is_nan(column), None, column)
        if not pc.all(pc.equal(pc.trunc(column), column)).as_py():
            return None
    elif not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        return None
    try:
        column = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None  # larger than any number of classes, as those of hashes are
    ends = pc.min_max(column).as_py()
    if ends["min"] is None:
        return Labels(np.full(len(column), -1), names)
    if ends["min"] < (0 if names is None else -1):
        return None
    if names is not None and ends["max"] >= len(names):
        index = pc.index(column, ends["max"]).as_py()
        raise DataError(f"image {index} has the label {ends['max']}, of {len(names)} classes")
    values = pc.fill_null(column, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Labels(values, names)


def labels_of_folders(folders: Mapping[str, Sequence[str | None]]) -> dict[str, Labels | None]:
    """Labels out of the name of each image's folder, by split; None for a split without any.

    Classes are the names of all splits in their order. Names that differ in how Unicode
    composes their letters are one. An image that is in no folder has no label.

    Raises:
        DataError: splits spell the name of a class differently.

    Example:
        >>> labels = labels_of_folders({"train": ["dog", "cat"], "test": ["dog", None]})
        >>> labels["test"]
        Labels(values=array([ 1, -1]), names=['cat', 'dog'])
    """
    spelled = {
        name: printable(unicodedata.normalize("NFC", name))
        for given in folders.values()
        for name in set(given)
        if name is not None
    }
    classes = {
        split: {spelled[name] for name in set(given) if name is not None}
        for split, given in folders.items()
    }
    _refuse_case_alone(classes)
    names = sorted(set(spelled.values()))
    places = {name: place for place, name in enumerate(names)}
    numbers = {None: -1} | {name: places[normal] for name, normal in spelled.items()}
    return {
        split: Labels(np.array([numbers[name] for name in given], np.int64), names)
        if classes[split]
        else None
        for split, given in folders.items()
    }


def join_labels(labels: Mapping[str, Labels | None]) -> dict[str, Labels | None]:
    """The labels of several splits, such that a number means the same class in all of them.

    A split in which no image has a label has none.

    Raises:
        DataError: the classes of some have names, those of others numbers alone; or splits
            spell the name of a class differently.

    Example:
        >>> ab, ba = (Labels(np.array([0, 1]), names) for names in ("ab", "ba"))
        >>> join_labels({"train": ab, "test": ba})["test"].values
        array([1, 0])
    """
    given = {
        split: found
        for split, found in labels.items()
        if found is not None and (found.values >= 0).any()
    }
    named = {split: found.names for split, found in given.items() if found.names is not None}
    joined: dict[str, Labels | None] = dict.fromkeys(labels) | given
    if not named:
        return joined
    _refuse_case_alone(named)
    if unnamed := sorted(given.keys() - named.keys()):
        raise DataError(
            f"the classes of the split {next(iter(named))} have names, and those of "
            f"{unnamed[0]} numbers alone; give both the same"
        )
    names = list(dict.fromkeys(name for found in named.values() for name in found))
    places = {name: place for place, name in enumerate(names)}
    for split, found in given.items():
        # The last one is for the label -1.
        numbers = np.array([*(places[name] for name in named[split]), -1])
        joined[split] = Labels(numbers[found.values], names)
    return joined


def _refuse_case_alone(classes: Mapping[str, Collection[str]]) -> None:
    """Raise a DataError if splits spell the name of a class differently.

    Both in one split are two classes, as a and A of handwritten letters are.
    """
    spelled: dict[str, tuple[str, str]] = {}
    for split, names in classes.items():
        for name in sorted(names):
            other, where = spelled.setdefault(name.casefold(), (name, split))
            if other != name and not any({name, other} <= set(n) for n in classes.values()):
                raise DataError(
                    f"the classes {printable(other)} of {where} and {printable(name)} of "
                    f"{split} differ by case alone; rename one of them"
                )
