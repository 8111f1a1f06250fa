"""What the command line tells of an error, in one sentence."""

import re
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from .checkpoints import misfit
from .errors import RunError
from .files import UNWRITABLE, unwritable

__all__ = ["reason_of"]

_MENDABLE = (ValueError, TypeError, OSError, ImportError, MisconfigurationException)


def reason_of(error: Exception) -> str | None:
    """What to tell of an error that a user can mend; None for any other."""
    chain = _chain(error)
    for link in chain:
        if isinstance(link, RunError):
            return str(link)
    for link in chain:
        if isinstance(link, OSError) and link.errno in UNWRITABLE:
            return str(unwritable(Path(str(link.filename or "a file")), link))
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        return f"the checkpoint does not fit the model of the config: {misfit(error)}"
    lost = re.search("gloo|NCCL|Connection (closed|reset)", str(error))
    if distributed.is_initialized() and isinstance(error, RuntimeError) and lost:
        return f"another process has failed, or left this one waiting: {error}".splitlines()[0]
    if isinstance(error, _MENDABLE):
        return _first_line(next(filter(_is_worded_here, chain), None) or _innermost(chain))
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error, what it was raised from or in the handling of, and so on."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or context
    return chain


def _is_worded_here(error: BaseException) -> bool:
    """Whether an error was raised by this library, with a sentence of its own."""
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module.startswith("mixer_bijectors") and isinstance(error, _MENDABLE)


def _innermost(chain: list[BaseException]) -> BaseException:
    """What was wrong at first; a missing key or attribute says nothing on its own."""
    sentences = [link for link in chain if isinstance(link, _MENDABLE) and _first_line(link)]
    return (sentences or chain[:1])[-1]


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return next(
        (line for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
