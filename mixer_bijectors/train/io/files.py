"""Files that are written whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RunError

__all__ = [
    "UNWRITABLE",
    "atomic_write",
    "expanded",
    "make_folder",
    "remove_drafts",
    "unwritable",
]

# What the system says of writing alone; a file may lack the permission to be read as well.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path` to write to, which takes its place once it is complete.

    Whenever the process dies, `path` holds what it held before or all of the new content.

    Raises:
        RunError: the file cannot be written.

    Example:
        >>> with atomic_write("numbers.txt") as draft:
        ...     _ = draft.write_text("1 2 3")
        >>> Path("numbers.txt").read_text()
        '1 2 3'
        >>> Path("numbers.txt").unlink()
    """
    path = Path(path)
    # The suffix last, as writers choose the format by it.
    draft = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed had begun to write."""
    for draft in Path(folder).glob(".*.partial*"):
        draft.unlink(missing_ok=True)


def expanded(path: str | os.PathLike[str]) -> str:
    """The path with the home folder for `~`, unless there is something of that very name."""
    path = os.fspath(path)
    if path.startswith("~") and os.path.lexists(path):
        return os.path.abspath(path)  # which Lightning does not expand later
    return os.path.expanduser(path)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there.

    Raises:
        RunError: it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def _sync_folder(path: Path) -> None:
    """Have the new name survive a loss of power, where folders can be opened for that."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unwritable(path: Path, error: OSError) -> RunError:
    """An error for a file or folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"the disk is full: {path} could not be written, what was there before is intact; "
            "free some space and start again, a run with --ckpt_path last"
        )
    return RunError(f"{path} cannot be written: {error.strerror or error}")
