"""Settings that a run does not share with that of the checkpoint which it goes on from."""

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
    found = {
        key: values
        for part in _PARTS
        if part in then
        for key, values in _differences(then[part], now.get(part), part).items()
    }
    if subcommand == "fit":
        found = {key: found[key] for key in found if not key.startswith(_OF_NO_EFFECT)}
    else:
        found = {key: found[key] for key in found if key.startswith(_OF_THE_MODEL)}
    return [
        f"{key} is {new}, and was {old} in the run of the checkpoint"
        for key, (old, new) in found.items()
    ]


def _differences(old: Any, new: Any, path: str) -> dict[str, tuple[Any, Any]]:
    """Values of keys that both have and that differ, by their path."""
    old, new = _by_class(old), _by_class(new)
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {path: (old, new)}
    if old.get("class_path") != new.get("class_path"):
        return {path: (old.get("class_path"), new.get("class_path"))}
    return {
        where: values
        for key in new
        if key in old
        for where, values in _differences(old[key], new[key], f"{path}.{key}").items()
    }


def _by_class(value: Any) -> Any:
    """A list of callbacks as a dictionary, by the names of their classes."""
    if not (isinstance(value, list) and value and all(map(_is_class, value))):
        return value
    return {one["class_path"].rpartition(".")[2]: one.get("init_args", {}) for one in value}


def _is_class(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value
