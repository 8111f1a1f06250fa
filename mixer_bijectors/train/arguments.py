"""The arguments of the command, and the checkpoints that they name."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .io.checkpoints import newest_first
from .io.configurations import configuration_of, find_config
from .io.errors import RunError
from .tasks.weights import NO_CHECKPOINT

__all__ = ["arranged", "need_file"]


def arranged(arguments: list[str], tasks: Sequence[str]) -> list[str]:
    """The arguments with configs first, so that options beside them hold wherever they stand.

    For what is done with a trained model, the config is that of the run of its checkpoint,
    unless another one is named.
    """
    if not arguments or arguments[0].startswith("-"):
        return arguments
    subcommand, *options = arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    parser.add_argument("--ckpt_path")
    try:
        given, others = parser.parse_known_args(options)
    except argparse.ArgumentError:
        return arguments  # to be told by the parser proper
    configs, path = [find_config(config) for config in given.config], given.ckpt_path
    if subcommand in (*tasks, "test", "validate") and not {"-h", "--help"} & set(options):
        # A model may be described by options alone.
        described = configs or any(option.startswith("--model.flow") for option in options)
        if path is None and not described:
            raise RunError(NO_CHECKPOINT)
        if path in ("last", "best"):
            raise RunError(
                f"{subcommand} takes the path of a checkpoint, such as "
                f"runs/NAME/version_N/checkpoints/{path}.ckpt, got {path}"
            )
        if path is not None and "://" not in path:
            need_file(path)
            config = None if configs else configuration_of(path)
            if config is not None:
                configs = [config]
            elif not described:
                raise RunError(
                    f"{path} holds no configuration, and is not in the folder of a run; name "
                    "the config of its run with --config"
                )
    front = [f"--config={config}" for config in configs]
    back = [] if path is None else [f"--ckpt_path={path}"]
    return [subcommand, *front, *others, *back]


def need_file(checkpoint: str) -> None:
    """Raise a RunError if a checkpoint is no file."""
    path = Path(checkpoint)
    if path.is_dir():
        inside = next(iter(newest_first(path, "**")), path / "checkpoints" / "best.ckpt")
        raise RunError(f"{path} is a folder; name a checkpoint in it, such as {inside}")
    if not path.is_file():
        raise RunError(f"there is no checkpoint {path}")
