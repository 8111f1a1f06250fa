"""The sentence that the command line prints for an error."""

import re
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from .checkpoints import misfit
from .errors import RunError
from .files import UNWRITABLE, unwritable
from .names import first_line

__all__ = ["reason_of"]

_MENDABLE = (ValueError, TypeError, OSError, ImportError, MisconfigurationException)


def reason_of(error: Exception) -> str | None:
    """One sentence on an error that a user can correct; None for any other error."""
    chain = _chain(error)
    for link in chain:
        if isinstance(link, RunError):
            return str(link)
    for link in chain:
        if isinstance(link, OSError) and link.errno in UNWRITABLE:
            return str(unwritable(Path(str(link.filename or "a file")), link))
    # The parser wraps errors of the classes that it builds into longer ones of its own.
    chain = [link for link in chain if not _raised_in(link).startswith("jsonargparse")] or chain
    first, text = chain[0], str(chain[0])
    if isinstance(first, RuntimeError) and "loading state_dict" in text:
        return f"the checkpoint does not fit the model of the config: {misfit(text)}"
    lost = re.search("gloo|NCCL|Connection (closed|reset)", text)
    if distributed.is_initialized() and isinstance(first, RuntimeError) and lost:
        return f"another process has failed, or left this one waiting: {text}".splitlines()[0]
    if not isinstance(first, _MENDABLE):
        return None
    worded_here = (link for link in chain if _raised_in(link).startswith("mixer_bijectors"))
    return _sentence(next(worded_here, None) or _innermost(chain))


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error, the error that it was raised from or while handling, and so on."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or context
    return chain


def _raised_in(error: BaseException) -> str:
    """The module that an error was raised in."""
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module


def _innermost(chain: list[BaseException]) -> BaseException:
    """The first error that explains itself; a missing key or attribute alone does not."""
    mute = (LookupError, AttributeError, StopIteration)
    sentences = [link for link in chain if str(link) and not isinstance(link, mute)]
    return (sentences or chain[:1])[-1]


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return first_line(error)
