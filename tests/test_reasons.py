"""The cause that a user is told of an error."""

import errno

import pytest
from commands import FLOW, LABELLED, call

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, RunError
from mixer_bijectors.train.io.reasons import reason_of


def raised(*errors):
    """The first of some errors, each raised from the next one."""
    try:
        if len(errors) == 1:
            raise errors[0]
        raise errors[0] from raised(*errors[1:])
    except Exception as error:
        return error


def worded_here(cause):
    """An error of the library that has another cause."""
    try:
        DensityEstimation(None, noise=-1.0)
    except ValueError as error:
        error.__cause__ = cause
        return error


DENIED = PermissionError(errno.EACCES, "Permission denied", "photo.png")

FULL = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")

CHAINS = {
    "the innermost": (raised(ValueError("parser"), ValueError("cause")), "cause"),
    "a key alone": (raised(ValueError("no such model"), KeyError("a")), "no such model"),
    "an attribute alone": (raised(TypeError("no pair"), AttributeError("int")), "no pair"),
    "nothing": (ValueError(), "ValueError"),
    "a run's": (raised(ValueError("parser"), RunError("why"), KeyError("a")), "why"),
    "a run's, within any": (raised(KeyError("a"), RunError("why")), "why"),
    "a sentence of the library": (
        raised(ValueError("parser"), worded_here(TypeError("not supported"))),
        "DensityEstimation: noise must not be negative, got -1.0",
    ),
    "a file that cannot be read": (DENIED, "photo.png: Permission denied"),
    "a full disk, deep inside": (raised(KeyError("a"), FULL), "the disk is full: last.ckpt"),
    "a failure in a user's code": (raised(ValueError("no data"), RuntimeError("why")), "why"),
    "a package": (ImportError("needs einops"), "needs einops"),
    "a fault of the program": (KeyError("a"), None),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_the_cause_of_an_error_is_told(kind):
    error, told = CHAINS[kind]
    reason = reason_of(error)
    assert reason is None if told is None else reason.startswith(told)


class Faulty(mb.MixerFlow):
    """A model of a user, which the parser does not manage to build."""

    def __init__(self, error: str) -> None:
        raise {"ValueError": ValueError, "RuntimeError": RuntimeError}[error]("why")


def test_the_cause_is_told_of_what_the_parser_builds(tmp_path):
    def build(error):
        model = ("--model.flow", "test_reasons.Faulty", f"{FLOW}error", error)
        return call("fit", *model, *LABELLED, "--model.noise", 0, fails=True)

    assert build("ValueError") == "mixer-bijectors: why"
    # A fault of the program is shown with its traceback.
    with pytest.raises(ValueError, match="Does not validate") as caught:
        build("RuntimeError")
    assert str(_cause_of(caught.value)) == "why"


def _cause_of(error):
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error
