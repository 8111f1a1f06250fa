"""Tables of images: parquet and arrow files, and other datasets of Hugging Face."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..io.errors import DataError, ImageError
from ..io.names import printable, some
from .decode import open_image
from .folders import SPLITS
from .labels import Labels, first_labels, label_columns, labels_of_column
from .tree import Tree

__all__ = ["Rows", "first_line", "load_tables", "split_tables", "unambiguous"]

_IMAGE_COLUMNS = ("image", "img")


def split_tables(tree: Tree) -> dict[str, list[str]]:
    """Which parquet or arrow files make which split, by their names, as `datasets` has it.

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
    filled = {path: schema for path, (schema, count) in read.items() if count}
    if not filled:
        raise DataError(f"{printable(paths[0])} holds no images")
    schema = _common_schema({path: schema for path, (schema, _) in read.items()})
    loaded = {}
    for split, given in files.items():
        given = [path for path in given if path in filled]
        if not given:
            continue
        features = _features(schema, {path: filled[path] for path in given})
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

    (first, common), *others = schemas.items()
    common = common.remove_metadata()
    for path, schema in schemas.items():
        names = schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{printable(path)} has two columns {twice[0]}; rename one of them")
    for path, schema in others:
        if sorted(schema.names) != sorted(common.names):
            raise DataError(
                f"{printable(path)} has the columns {', '.join(schema.names)}, and "
                f"{printable(first)} {', '.join(common.names)}; they must be the same"
            )
        for name in common.names:
            fields = [common.field(name), schema.field(name).remove_metadata()]
            try:
                # A column in which all is missing has a type of its own, null.
                (field,) = pa.unify_schemas(
                    [pa.schema([field]) for field in fields], promote_options="permissive"
                )
            except pa.ArrowException:
                raise DataError(
                    f"the column {name} of {printable(path)} is of type {fields[1].type}, that "
                    f"of {printable(first)} {fields[0].type}; they must be the same"
                ) from None
            common = common.set(common.get_field_index(name), field)
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


class Rows:
    """A split of a Hugging Face dataset: images, still encoded, and labels.

    Args:
        rows: a `datasets.Dataset`.
        left_out: where to put which columns are not read, by the reason.

    Attributes:
        labels: of the images, or None.

    Raises:
        DataError: there is no column of images, or one of labels that are none.
    """

    def __init__(self, rows: Any, left_out: dict[str, list[str]]) -> None:
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
        self.labels: Labels | None = first_labels(likely, features, read, left_out)
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


def first_line(error: BaseException) -> str:
    """What was wrong at first, behind what `datasets` wraps it in, in one line."""
    from datasets.exceptions import DatasetGenerationError

    while isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]
