"""Configurations: those in the package, and those that checkpoints carry."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from .checkpoints import load_checkpoint
from .errors import RunError

__all__ = ["PACKAGED", "configuration_of", "with_base"]

PACKAGED = Path(str(files("mixer_bijectors.train") / "configs")).resolve()
_BASE = str(PACKAGED / "base.yaml")


def configuration_of(
    path: str | os.PathLike[str], checkpoint: dict[str, Any] | None = None
) -> str | None:
    """The configuration of a checkpoint's run as YAML.

    It is read from the checkpoint itself or, for those that were written before they carried
    it, from the folder of its run. None where there is neither.

    Args:
        path: the checkpoint.
        checkpoint: what it holds, if it has been read already.
    """
    if checkpoint is None:
        checkpoint = load_checkpoint(path, mmap=True)
    config = checkpoint.get("config")
    if isinstance(config, str):
        return config
    beside = Path(path).resolve().parent.parent / "config.yaml"
    return beside.read_text() if beside.is_file() else None


def with_base(names: Sequence[str]) -> list[str]:
    """The files of configurations, with that which those of the package share before them.

    Args:
        names: paths, or names of configurations in the package.

    Raises:
        RunError: there is neither such a file nor such a configuration, or it is no YAML.
    """
    found = [_config_file(name) for name in names]
    of_runs = {str(path) for path in PACKAGED.glob("*.yaml")}
    needs_base = any(os.path.realpath(path) in of_runs for path in found) and _BASE not in found
    return [_BASE, *found] if needs_base else found


def _config_file(name: str) -> str:
    """The file of a configuration, or YAML itself."""
    if "\n" in name:
        return name
    if Path(name).expanduser().is_file():
        _check_yaml(Path(name).expanduser())
        return name
    packaged = {path.stem: path for path in sorted(PACKAGED.rglob("*.yaml"))}
    stem = name.removesuffix(".yaml")
    if stem not in packaged:
        raise RunError(
            f"there is no config {name}: no such file, and the configs in the package are "
            f"{', '.join(packaged)}"
        )
    return str(packaged[stem])


def _check_yaml(path: Path) -> None:
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"the config {path} is no YAML: {reason}") from error
    if not isinstance(config, dict):
        raise RunError(f"the config {path} has no keys, such as model and data")
