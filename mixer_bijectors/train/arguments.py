"""The arguments of the command, and the checkpoints that they name."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from .io.checkpoints import check_resumable, newest_first
from .io.configurations import configuration_of, with_base
from .io.errors import RunError
from .io.files import expanded
from .tasks.weights import NO_CHECKPOINT

__all__ = ["arranged", "last_in"]


def arranged(arguments: list[str], tasks: Sequence[str]) -> list[str]:
    """The arguments with configs first, so that options override them from any position.

    For what is done with a trained model, the config is that of the run of its checkpoint,
    unless another one is named.
    """
    if not arguments or arguments[0].startswith("-"):
        return arguments
    subcommand, *options = arguments
    # Of a command's own options, both spellings.
    options = [
        "--importance_samples".join(re.split("^--importance-samples", o)) for o in options
    ]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    parser.add_argument("--ckpt_path")
    try:
        given, others = parser.parse_known_args(options)
    except argparse.ArgumentError as error:
        raise RunError(f"{subcommand}: {error.argument_name} needs a value") from error
    if given.ckpt_path == "":
        raise RunError(f"{subcommand}: --ckpt_path needs a value")
    configs, path = with_base(given.config), given.ckpt_path
    asks_for_help = {"-h", "--help", "--help-all"} & set(options)
    if subcommand in (*tasks, "test", "validate") and not asks_for_help:
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
            path = expanded(path)
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


def last_in(
    root: Path, runs: str, loggers: Sequence[Path] = (), folders: Sequence[Path] = ()
) -> str | None:
    """The newest checkpoint to go on from of the runs in a folder, None where there is none.

    Args:
        root: the folder.
        runs: a pattern of the folders of runs in it.
        loggers: folders that loggers have for their runs.
        folders: folders of checkpoints, which count where no run has any of its own.

    Raises:
        RunError: there are other checkpoints, or it is damaged.
    """
    places = [(root, f"{runs}/checkpoints"), *((path, "**/checkpoints") for path in loggers)]
    found = newest_first(*places) or newest_first(*((path, ".") for path in folders))
    if not found:
        elsewhere = newest_first((root, "**"))
        if not elsewhere:
            return None
        raise RunError(
            f"there is no checkpoint in {root} where its runs leave them, but there is "
            f"{elsewhere[0]}; name it to go on from it, --ckpt_path {elsewhere[0]}, or start a "
            "new run without --ckpt_path"
        )
    lasts = [path for path in found if path.name.startswith("last")]
    if found[0].parent not in {path.parent for path in lasts}:
        raise RunError(
            f"{found[0].parent} has no last.ckpt to go on from; name another checkpoint, "
            f"--ckpt_path {found[0]}, or start a new run without --ckpt_path"
        )
    last = lasts[0]
    try:
        check_resumable(last)
    except RunError as error:
        beside = (path for path in found if path.parent == last.parent and path != last)
        other = next(filter(_is_resumable, beside), None)
        if other is None:
            raise
        raise RunError(f"{error}; name another, --ckpt_path {other}") from error
    return str(last)


def _is_resumable(path: Path) -> bool:
    try:
        check_resumable(path)
    except RunError:
        return False
    return True
