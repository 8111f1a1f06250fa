"""Settings that a run does not share with that of the checkpoint which it goes on from."""

from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from .io.configurations import configuration_of

__all__ = ["changes"]

_PARTS = ("seed_everything", "trainer", "guard", "model", "data")
# Where a run writes, and what it shows.
_OF_NO_EFFECT = (
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
_OF_THE_MODEL = ("model.flow", "model.noise")


def changes(checkpoint: str, now: dict[str, Any], subcommand: str) -> list[str]:
    """A sentence for each setting with its value now and in the run of a checkpoint.

    Args:
        checkpoint: its file.
        now: the settings.
        subcommand: `fit`, for which all of them count, or another, for which the model does.
    """
    then = yaml.safe_load(configuration_of(checkpoint) or "") or {}
    looked_at = _PARTS if subcommand == "fit" else _OF_THE_MODEL
    return [
        f"{key} is {new}, and was {old} in the run of the checkpoint"
        for part in _PARTS
        if part in then
        for key, old, new in _differences(then[part], now.get(part), part)
        if key.startswith(looked_at) and not key.startswith(_OF_NO_EFFECT)
    ]


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The path and both values of each key that both have and that differs."""
    old, new = _by_class(old), _by_class(new)
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield path, old, new
    elif old.get("class_path") != new.get("class_path"):
        yield path, old.get("class_path"), new.get("class_path")
    else:
        for key in (key for key in new if key in old):
            yield from _differences(old[key], new[key], f"{path}.{key}")


def _by_class(value: Any) -> Any:
    """A list of callbacks as a dictionary, by the names of their classes."""
    if not (isinstance(value, list) and value):
        return value
    try:
        return {one["class_path"].rpartition(".")[2]: one.get("init_args", {}) for one in value}
    except (TypeError, KeyError):
        return value  # of numbers or words
