"""Parquet and arrow files: their splits, their columns, and what is wrong with them."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.errors import DataError
from ..io.names import first_line, printable, some
from .folders import SPLITS
from .tree import Tree

__all__ = ["load_tables", "split_tables", "unambiguous"]


def split_tables(tree: Tree) -> dict[str, list[str]]:
    """The parquet or arrow files of each split, by their names, as `datasets` has it.

    Folders that are named like splits count first, then words in the names of files, and
    without both all are in `train`. Files `data/NAME-00000-of-00001.parquet` are of NAME.
    """
    readme = os.path.join(tree.root, "README.md")
    if os.path.isfile(readme):
        text = Path(readme).read_text("utf8", "replace")
        configurations = re.findall(r"^\s*-?\s*config_name:\s*(\S+)", text, re.MULTILINE)
        folders = {path.split(os.sep)[0] for path in tree.tables} & set(configurations)
        if len(folders) > 1:
            raise DataError(
                f"{printable(readme)} has the configurations {some(sorted(folders))}; name the "
                "folder of one of them"
            )
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
        # Folders may be parts of one table as well as classes.
        inner = {os.path.dirname(path) for path in tree.tables} - {""}
        if len(inner) > 1:
            tree.left_out["folders of tables are no classes; add a column label"] += sorted(
                inner
            )
        splits = {"train": tree.tables}
    return {
        split: [os.path.join(tree.root, path) for path in paths]
        for split, paths in splits.items()
    }


def load_tables(files: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The rows of parquet or arrow files, by split.

    Raises:
        DataError: a file is damaged, or has other columns than the first.
    """
    import datasets

    paths = [path for given in files.values() for path in given]
    kinds = {Path(path).suffix.lower()[1:] for path in paths}
    if len(kinds) > 1:
        raise DataError("there are both parquet and arrow files; name one of them, or a folder")
    kind = kinds.pop()
    read = {path: _read(path) for path in paths}
    if not any(count for _, count in read.values()):
        raise DataError(f"{printable(paths[0])} holds no images")
    common = _common_schema({path: schema for path, (schema, _) in read.items()})
    loaded = {}
    for split, given in files.items():
        given = [path for path in given if read[path][1]]
        if not given:
            continue
        features = _features(common, {path: read[path][0] for path in given})
        # It takes patterns, in which some characters mean something.
        patterns = [glob.escape(unambiguous(path)) for path in given]
        try:
            loaded[split] = datasets.load_dataset(
                kind, data_files=patterns, features=features, split="train"
            )
        except Exception:
            for path in given:  # to name the one that is damaged
                _read(path, whole=True)
            raise
    return loaded


def _common_schema(schemas: Mapping[str, Any]) -> Any:
    """The columns of all files, of types that hold what is in each of them."""
    import pyarrow as pa

    first, common = next(iter(schemas.items()))
    common = common.remove_metadata()
    for path, schema in schemas.items():
        names = schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{printable(path)} has two columns {twice[0]}; rename one of them")
        if sorted(names) != sorted(common.names):
            raise DataError(
                f"{printable(path)} has the columns {', '.join(names)}, and "
                f"{printable(first)} {', '.join(common.names)}; they must be the same"
            )
        try:
            # A column in which all is missing has a type of its own, null.
            both = [common, schema.remove_metadata()]
            common = pa.unify_schemas(both, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"{printable(path)} has a column of another type than {printable(first)}: "
                f"{error}; they must be the same"
            ) from None
    return common


def _features(schema: Any, schemas: Mapping[str, Any]) -> Any:
    """The features of a split: the columns of `schema`, with the classes that its files name.

    Raises:
        DataError: the files name different classes, so that a number has two meanings.
    """
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    given = {path: datasets.Features.from_arrow_schema(s) for path, s in schemas.items()}
    first = next(iter(given))
    for name in features:
        for path, others in given.items():
            one, two = (getattr(f[name], "names", None) for f in (given[first], others))
            if one != two:
                said = [some(names) if names else "without names" for names in (two, one)]
                raise DataError(
                    f"the classes of the column {name} of {printable(path)} are {said[0]}, and "
                    f"those of {printable(first)} {said[1]}; they must be the same"
                )
        if isinstance(given[first][name], datasets.ClassLabel | datasets.Image):
            features[name] = given[first][name]
    return features


def unambiguous(path: str) -> str:
    """A path as `datasets` takes it, which reads web addresses and variables into some.

    Raises:
        DataError: there is something of the kind in it, or bytes that are no text.
    """
    real = os.path.realpath(path)
    if "::" in real or "://" in real or os.path.expandvars(real) != real:
        what = "'::', '://' or a variable"
    elif real != real.encode("utf8", "replace").decode():
        what = "bytes that are no UTF-8"
    else:
        return real
    raise DataError(f"{printable(real)} has {what} in its name; give it another one")


def _read(path: str, whole: bool = False) -> tuple[Any, int]:
    """The columns of a file, and how many rows it has, or 1 where that takes reading them.

    Raises:
        DataError: it is damaged; that of the rows is found where all of them are read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file:
            if path.lower().endswith(".parquet"):
                table = pq.ParquetFile(file)
                for _ in table.iter_batches() if whole else ():
                    pass
                return table.schema_arrow, table.metadata.num_rows
            try:
                stream = pa.ipc.open_stream(file)
            except pa.ArrowInvalid:
                file.seek(0)
                stream = pa.ipc.open_file(file)
            if whole:
                stream.read_all()
            return stream.schema, 1
    except Exception as error:
        # Damage surfaces as half a dozen kinds of errors.
        raise DataError(f"{printable(path)} cannot be read: {first_line(error)}") from error
