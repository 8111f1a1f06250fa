"""Files of metadata beside images, as Hugging Face's `imagefolder` knows them."""

import os
import unicodedata
from typing import Any

import numpy as np

from ..io.errors import DataError
from ..io.names import first_line, printable, some
from .labels import Labels, first_labels, label_columns, labels_of_column
from .tree import Tree

__all__ = ["read_metadata"]

# What a file may be whose columns are not found.
_HINTS = {".csv": "separate columns by commas, ", ".jsonl": "write one object a line, "}


def read_metadata(tree: Tree) -> tuple[dict[str, int], Labels | None]:
    """The row of each image in the files of metadata, and the labels of the rows."""
    if not tree.metadata:
        return {}, None
    import pandas as pd
    import pyarrow as pa

    readers: dict[str, Any] = {
        ".csv": _read_csv,
        ".jsonl": lambda path: pd.read_json(
            path, lines=True, dtype=False, encoding="utf-8-sig"
        ),
        ".parquet": _read_parquet,
    }
    # Systems and programs differ in how they compose letters with accents.
    known = {unicodedata.normalize("NFC", path): path for path in tree.images}
    known |= {path: path for path in tree.images}
    root = os.path.join(os.path.abspath(tree.root), "")  # of whole paths
    tables = []
    for name in tree.metadata:
        path = os.path.join(tree.root, name)
        try:
            table = readers[os.path.splitext(name)[1]](path)
        except Exception as error:
            # Each of the readers has errors of its own.
            raise DataError(f"{printable(path)} cannot be read: {first_line(error)}") from error
        if not len(table):
            raise DataError(
                f"{printable(path)} lists no images; list them, or move the file away"
            )
        files = [c for c in table if str(c) == "file_name" or str(c).endswith("_file_name")]
        # The column of this name first, whatever masks or depths there are beside.
        files.sort(key=lambda column: column != "file_name")
        if not files:
            how = _HINTS.get(os.path.splitext(name)[1], "")
            raise DataError(
                f"{printable(path)} has no column file_name of its images, but "
                f"{some([str(c) for c in table])}; name it so, {how}or move the file away"
            )
        if table[files[0]].isna().any():
            row = int(table[files[0]].isna().to_numpy().argmax())
            raise DataError(
                f"{printable(path)} names no file in its row {row + 1}; give it the name of an "
                "image, or remove it"
            )
        folder = os.path.dirname(name)
        given = [os.path.normpath(os.path.join(folder, str(file))) for file in table[files[0]]]
        given = [file.removeprefix(root) for file in given]
        table["path"] = [
            known.get(path) or known.get(unicodedata.normalize("NFC", path), path)
            for path in given
        ]
        missing = [path for path in table["path"] if path not in known]
        if missing:
            raise DataError(
                f"{printable(path)} lists {printable(missing[0])}, which is no image in "
                f"{printable(tree.root)}; {len(missing)} of {len(table)} are not there"
            )
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)

    def read(column: str) -> Labels | None:
        try:
            return labels_of_column(pa.array(table[column], from_pandas=True))
        except pa.ArrowException:
            return None  # of several kinds

    columns = [column for column in table if isinstance(column, str)]
    labels = first_labels(
        label_columns(columns), columns, read, tree.left_out, tree.metadata[0]
    )
    values = np.full(len(table), -1) if labels is None else labels.values
    listed: dict[str, int] = {}
    for row, path in enumerate(table["path"]):
        if path in listed:
            tree.left_out["listed again in the metadata"].append(path)
        first = listed.setdefault(path, row)
        if values[first] < 0:
            values[first] = values[row]
        if values[row] >= 0 and values[first] != values[row]:
            raise DataError(
                f"{printable(os.path.join(tree.root, path))} has two labels in the metadata, "
                f"{values[first]} and {values[row]}"
            )
    return listed, labels


def _read_csv(path: str) -> Any:
    import pandas as pd

    # Pandas gives the second of two columns of one name another name.
    names = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].dropna()
    if names.duplicated().any():
        raise ValueError(f"two columns are {names[names.duplicated()].iloc[0]}; rename one")
    return pd.read_csv(path, dtype={"file_name": str})


def _read_parquet(path: str) -> Any:
    import pyarrow.parquet as pq

    # Without what pandas wrote of its own, which would make an index of the file names.
    with open(path, "rb") as file:
        return pq.ParquetFile(file).read().to_pandas(ignore_metadata=True)
