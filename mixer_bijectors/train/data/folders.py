"""Images in folders: which splits and classes they make."""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from ..io.errors import DataError
from ..io.names import printable, some
from .labels import Labels, join_labels, labels_of_folders
from .metadata import read_metadata
from .split import Item, Split
from .tree import Tree

__all__ = ["SPLITS", "Files", "read_folder"]

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Files(Split):
    """A split of image files.

    Args:
        root: the folder that they are in.
        paths: of each from there.
        labels: of each, if there are any.
    """

    def __init__(self, root: str, paths: Sequence[str], labels: Labels | None) -> None:
        self.root = root
        # Not as objects, whose counts of references each worker would copy.
        self.paths = np.array([os.fsencode(path) for path in paths], np.bytes_)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = os.path.join(self.root, os.fsdecode(self.paths[index]))
        return Item(path, self.label(index), printable(path))


def read_folder(tree: Tree, used: Collection[str] | None = None) -> dict[str, Files]:
    """The splits of a folder of images, and in `tree.left_out` what is in none of them.

    Subfolders `train`, `validation` and `test` are splits; without them all images are in
    `train`. The class of an image is the first folder below the split that it is in, at
    whatever depth; one that lies beside these has no label. A folder with nothing but another
    one in it is read as that, also where all splits hold the same one. A file of metadata, as
    `imagefolder` knows them, says which
    images there are, and their labels if it has a column of these.

    Args:
        tree: the files of the folder.
        used: the splits whose images are read, all by default. Others have no labels, as their
            classes take no numbers.

    Raises:
        DataError: there are no images, or it cannot be told what is meant.
    """
    if not tree.images:
        raise DataError(f"{printable(tree.root)} holds no images{_instead(tree)}")
    parts = {path: path.split(os.sep) for path in tree.images}
    splits, start = _split(tree, parts)
    counted = {s: paths for s, paths in splits.items() if used is not None and s not in used}
    splits = {split: paths for split, paths in splits.items() if split not in counted}
    for paths in counted.values():
        folder = os.path.join("", *parts[paths[0]][:start], "")
        tree.metadata = [path for path in tree.metadata if not path.startswith(folder)]
    inside = [[parts[path] for path in paths] for paths in splits.values()]
    # A split without folders says nothing of where the classes are.
    deep = [split for split in inside if any(len(p) > start + 1 for p in split)]
    start = _descend([p for split in deep for p in split], start)
    listed, labels = read_metadata(tree)
    if listed:
        splits = {split: _listed(tree, paths, listed) for split, paths in splits.items()}
    by_split: dict[str, Labels | None] = {}
    if labels is not None:
        for split, paths in splits.items():
            rows = [listed[path] for path in paths if path in listed]
            if rows:
                by_split[split] = Labels(labels.values[rows], labels.names)
    rest = {split: paths for split, paths in splits.items() if split not in by_split}
    by_split |= labels_of_folders(
        {
            split: [
                parts[path][start] if len(parts[path]) > start + 1 else None for path in paths
            ]
            for split, paths in rest.items()
        }
    )
    joined = dict.fromkeys(counted) | join_labels(by_split)
    splits |= counted
    return {split: Files(tree.root, paths, joined[split]) for split, paths in splits.items()}


def _split(tree: Tree, parts: dict[str, list[str]]) -> tuple[dict[str, list[str]], int]:
    """The images of each split, and at which part of their paths the classes are."""
    start = _descend(parts.values(), 0)
    place = printable(os.path.join(tree.root, *parts[tree.images[0]][:start]))
    folders: dict[str, set[str]] = defaultdict(set)
    for p in parts.values():
        if len(p) > start + 1:
            # What is in it, if that might be splits.
            folders[p[start]].update(
                name for name in p[start + 1 : -1][:1] if name.lower() in SPLITS
            )
    named = sorted(name for name in folders if name.lower() in SPLITS)
    others = sorted(folders.keys() - set(named))
    if named and others:
        raise DataError(
            f"{place} has the folders {some(named)}, which are splits, beside {some(others)}; "
            "move these away or, if all are classes, all of them into a folder train"
        )
    for name in others:
        if len({SPLITS[inner.lower()] for inner in folders[name]}) > 1:
            around = [other for other in others if folders[other]]
            above = f"{min(folders[name])}/{printable(name)}"
            raise DataError(
                f"{os.path.join(place, printable(name))} has the folders "
                f"{some(sorted(folders[name]))}, which are splits; name it as the path"
                + (
                    f" or, if {some(around)} are classes, put the splits above them, as {above}"
                    if len(around) > 1
                    else ""
                )
            )
    if not named:
        return {"train": tree.images}, start
    splits: dict[str, list[str]] = {}
    for name in sorted(named, key=lambda name: list(SPLITS).index(name.lower())):
        split = SPLITS[name.lower()]
        if split in splits:
            both = some([n for n in named if SPLITS[n.lower()] == split])
            raise DataError(
                f"{place}: {both} name one split; join their images, or move one away"
            )
        splits[split] = [path for path in tree.images if name in parts[path][start:-1][:1]]
    outside = [path for path, p in parts.items() if len(p) == start + 1]
    tree.left_out["beside the splits"] += outside
    return splits, start + 1


def _descend(parts: Collection[Sequence[str]], start: int) -> int:
    """The part of the paths below the folders that hold nothing but another one, no split."""
    while parts and all(len(p) > start + 2 for p in parts):
        names = {p[start] for p in parts}
        if len(names) > 1 or min(names).lower() in SPLITS:
            break
        start += 1
    return start


def _listed(tree: Tree, paths: list[str], listed: dict[str, int]) -> list[str]:
    """The images of a split that metadata lists, in that order; all where it lists none."""
    kept = sorted((path for path in paths if path in listed), key=listed.__getitem__)
    if kept:
        tree.left_out["not listed in the metadata"] += [p for p in paths if p not in listed]
    return kept or paths


def _instead(tree: Tree) -> str:
    """A part of a sentence on the other contents of a folder without images."""
    left = [f"{some(paths)} ({reason})" for reason, paths in tree.left_out.items()]
    return f", but {'; '.join(left)}" if left else ""
