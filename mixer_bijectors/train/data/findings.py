"""A sentence on the images that were found."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..io.names import printable, some
from .labels import Labels
from .split import Split

__all__ = ["describe"]

_USES = {"train": "training", "val": "validation", "test": "test"}
# As many classes are listed one by one.
_LISTED = 10


def describe(
    path: str,
    counts: Mapping[str, int],
    splits: Mapping[str, Split],
    used: Collection[str],
    left_out: Mapping[str, Sequence[str]],
) -> str:
    """A line on the numbers of images and classes, and on what was left out and why.

    Args:
        path: of the dataset, as the user gave it.
        counts: of images to train, to validate and to test with.
        splits: of the dataset.
        used: the names of those that images are taken from.
        left_out: files and columns that are not read, by the reason.
    """
    numbers = [f"{counts[split]} {name}" for split, name in _USES.items() if split in counts]
    said = [f"{printable(path)}: {_and(numbers)} images"]
    given = {split: splits[split].labels for split in used}
    known = {split: labels for split, labels in given.items() if labels is not None}
    said += _classes(known)
    missing = {
        split: len(splits[split]) if labels is None else int((labels.values < 0).sum())
        for split, labels in given.items()
    }
    bare = [f"{count} of {split}" for split, count in missing.items() if count and known]
    unused = [f"{split} ({len(splits[split])})" for split in splits if split not in used]
    reasons = [f"{some(names)} ({reason})" for reason, names in left_out.items() if names]
    rest = {
        "without a label": _and(bare),
        "not used": _and(unused),
        "left out": ", ".join(reasons),
    }
    return "; ".join(said + [f"{what}: {words}" for what, words in rest.items() if words])


def _classes(given: Mapping[str, Labels]) -> list[str]:
    """The classes, with their numbers of images."""
    if not given:
        return ["no labels"]
    together = np.concatenate([labels.values for labels in given.values()])
    labels, counts = np.unique(together[together >= 0], return_counts=True)
    names = next(iter(given.values())).names
    if len(labels) > _LISTED:
        said = [f"{len(labels)} classes of {counts.min()} to {counts.max()} images"]
    else:
        one = "class" if len(labels) == 1 else "classes"
        listed = [f"{_called(n, names)} ({count})" for n, count in zip(labels, counts)]
        said = [f"{len(labels)} {one}: {', '.join(listed)}"]
    # Text sorts 10 before 2, so that the label is not the number that it looks like.
    odd = [n for n in labels if names and names[n].isdecimal() and int(names[n]) != n]
    if names and odd and len(labels) > _LISTED:
        said.append(f"sorted as text, so that label {odd[0]} is the class {names[odd[0]]}")
    if "train" in given and (unseen := sorted(set(labels) - set(given["train"].values))):
        said.append(f"not in train: {some([_called(n, names) for n in unseen])}")
    return said


def _called(label: int, names: Sequence[str] | None) -> str:
    return str(label) if names is None else f"{label} {printable(names[label])}"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
