"""Configurations: those in the package, and those that checkpoints carry."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from .checkpoints import load_checkpoint
from .errors import RunError

__all__ = ["PACKAGED", "configuration_of", "find_config"]

PACKAGED = Path(str(files("mixer_bijectors.train") / "configs"))


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


def find_config(name: str) -> str:
    """The file of a configuration: a path, or the name of one in the package.

    Raises:
        RunError: there is neither such a file nor such a configuration.
    """
    if "\n" in name or Path(name).expanduser().is_file():
        return name  # YAML itself, or a file
    packaged = {path.stem: path for path in sorted(PACKAGED.rglob("*.yaml"))}
    packaged.pop("base", None)
    stem = name.removesuffix(".yaml")
    if stem not in packaged:
        raise RunError(
            f"there is no config {name}: no such file, and the configs in the package are "
            f"{', '.join(packaged)}"
        )
    return str(packaged[stem])
