"""The files of a folder, listed here rather than by a pattern.

In a pattern some characters of a path, such as brackets, would mean something else.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from PIL import Image

from ..io.errors import DataError
from ..io.names import printable
from .decode import FORMATS

__all__ = ["METADATA", "TABLES", "Tree", "list_files"]

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (".parquet", ".arrow")
# What systems and programs leave beside images, besides what starts with a dot.
_LEFT_BY_SYSTEMS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found")


@dataclass
class Tree:
    """The files below a folder, by their paths from there, in the order of these.

    Attributes:
        root: the folder.
        images: files with the suffix of an image.
        tables: parquet and arrow files.
        metadata: files of metadata in the way of Hugging Face's `imagefolder`.
        left_out: by the reason, other files and folders.
    """

    root: str
    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def list_files(root: str) -> Tree:
    """All files below a folder. Links are followed, unless they lead to where they are.

    Raises:
        DataError: a folder cannot be read.
    """
    tree = Tree(root)
    folders = []
    for path, kind in _walk(root):
        name = os.path.basename(path)
        suffix = os.path.splitext(name)[1].lower()
        if kind == "folder":
            folders.append(path)
        elif kind != "file":
            tree.left_out[kind].append(path)
        elif name in METADATA:
            tree.metadata.append(path)
        elif suffix in _suffixes():
            tree.images.append(path)
        elif suffix in TABLES:
            tree.tables.append(path)
        else:
            tree.left_out["of no format that is read"].append(path)
    holding = {""}
    for path in {os.path.dirname(path) for path in tree.images + tree.tables}:
        while path not in holding:
            holding.add(path)
            path = os.path.dirname(path)
    empty = [p for p in folders if p not in holding and os.path.dirname(p) in holding]
    if empty:
        tree.left_out["without images"] = empty
    for paths in (tree.images, tree.tables, tree.metadata, *tree.left_out.values()):
        paths.sort()
    return tree


@cache
def _suffixes() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, form in known.items() if form in FORMATS)


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """The paths below a folder, each with `file`, `folder`, or the reason why it is none."""
    # With each folder those that it lies in, where links have led.
    stack: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while stack:
        folder, way = stack.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                found = list(entries)
        except OSError as error:
            where = printable(os.path.join(root, folder))
            raise DataError(f"{where} cannot be read: {error.strerror}") from error
        for entry in found:
            path = os.path.join(folder, entry.name)
            is_link = entry.is_symlink()
            # Of a link in a circle `entry` itself would raise.
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
            if entry.name.startswith(".") or entry.name in _LEFT_BY_SYSTEMS:
                yield path, "hidden"
            elif is_folder:
                place = os.path.join(way[-1], entry.name)
                if is_link:
                    place = os.path.realpath(entry.path)
                    if any(
                        os.path.join(p, "").startswith(os.path.join(place, "")) for p in way
                    ):
                        yield path, "a link to a folder that it lies in"
                        continue
                yield path, "folder"
                stack.append((path, (*way, place)))
            elif os.path.isfile(entry.path) if is_link else entry.is_file():
                yield path, "file"
            else:
                yield path, "a link that leads nowhere" if is_link else "no file"
