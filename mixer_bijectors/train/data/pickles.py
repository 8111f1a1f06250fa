"""Plain data and arrays of numbers out of pickles that may mean harm, as CIFAR's may.

A pickle is a program. Python's unpickler runs it, but looks up the functions that the program
names in `find_class`, which gives it `_Call` for them. That keeps the arguments and calls
nothing; arrays are made of them afterwards. Text alone is encoded at once, for keys. An
unpickler by itself bounds neither memory nor the hashing of nested tuples, so the instructions
are looked through before they are run.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.errors import DataError

__all__ = ["read_pickle"]

# The functions and classes that pickles of arrays name.
_NAMED = {
    "numpy.core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
    "numpy.ndarray",
    "numpy.dtype",
}


_NO_ARRAY = "makes something else than an array of numbers"


class _Refused(Exception):  # noqa: N818
    """Says what a pickle asks for that plain data and arrays do not need."""


def read_pickle(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Entries of a dict in a pickle: plain data or arrays, and bytes for Python 2's strings.

    Args:
        path: of the pickle.
        keys: of the entries; those that are missing are left out.

    Raises:
        DataError: the file asks for anything else, is damaged, or holds no dict.
    """
    try:
        content = path.read_bytes()
        _check(content)
        entries = _Unpickler(content).load()
        if isinstance(entries, dict):
            # Python 2 wrote the keys as bytes; whoever saved the files anew has them as text.
            given = [(key, form) for key in keys for form in (key, key.encode())]
            return {key: _plain(entries[form]) for key, form in given if form in entries}
    except _Refused as refused:
        raise DataError(
            f"{path}: not read and nothing of it run, since the pickle {refused}, and a "
            "dataset needs plain data and arrays of numbers alone"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        # A damaged file surfaces as half a dozen kinds, from pickle, pickletools and numpy.
        raise DataError(
            f"{path}: the pickle is cut short or damaged; download it again"
        ) from error
    raise DataError(f"{path}: the pickle must be a dict, got {type(entries).__name__}")


# Instructions that are allowed, each as a letter: i for whole numbers, ( for the mark, digits
# and t for tuples, c for what takes a tuple of arguments, nothing for what changes no value.
_ALLOWED = {
    "i": "INT BININT BININT1 BININT2 LONG LONG1 LONG4",
    "c": "REDUCE BUILD",
    "": "PUT BINPUT LONG_BINPUT MEMOIZE PROTO FRAME",
    "-": "FLOAT BINFLOAT NONE NEWTRUE NEWFALSE EMPTY_TUPLE EMPTY_LIST LIST APPEND APPENDS "
    "EMPTY_DICT DICT SETITEM SETITEMS UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 GET BINGET "
    "LONG_BINGET GLOBAL STACK_GLOBAL STOP",
    **{"(": "MARK", "t": "TUPLE", "1": "TUPLE1", "2": "TUPLE2", "3": "TUPLE3"},
}
_LETTERS = {name: letter for letter, names in _ALLOWED.items() for name in names.split()}


def _check(content: bytes) -> None:
    """Refuse instructions that arrays and plain data do not need, before any is run."""
    letters = []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _LETTERS:
            raise _Refused(f"uses the instruction {opcode.name}")
        # The unpickler allocates all places up to this one.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise _Refused("stores more values than it has")
        letters.append(_LETTERS[opcode.name])
    # The hash of nested tuples takes exponential time, or all of the C stack. So a tuple holds
    # whole numbers, as shapes do, or is at once the argument of a call, which is not hashed.
    if re.search("[123t]", re.sub(r"i1|ii2|iii3|\(i*t|[123t]c", "", "".join(letters))):
        raise _Refused("has a tuple that is neither a shape nor an argument")


class _Call:
    """A call that a pickle asks for, and the state that it sets of the result."""

    name = ""
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, for which `_Call` and `encode` are all that can be named."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        # Text encodes to no more than it takes in the file, unless the same is encoded again
        # and again to fill the memory.
        self.budget = len(content)

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module}.{name}"
        if name == "_codecs.encode":
            return self.encode
        if name.replace("numpy._core.", "numpy.core.") not in _NAMED:
            raise _Refused(f"asks for {name[:80]!r}")
        return type("_Call", (_Call,), {"name": name.rpartition(".")[2]})

    def encode(self, *arguments: Any) -> bytes:
        """Bytes as protocols before 3 write them, by `_codecs.encode`."""
        match arguments:
            case (str() as text, "latin1" | b"latin1"):
                self.budget -= len(text)
                if self.budget < 0:
                    raise _Refused("holds less than it unpacks to")
                return text.encode("latin-1")
        raise _Refused(_NO_ARRAY)


def _plain(value: Any) -> Any:
    """The array that a call of numpy would make, a view of bytes of the file; or the value."""
    if not isinstance(value, _Call):
        return value
    match value.name, value.arguments, value.state:
        case "_reconstruct", _, (int(), tuple() as shape, dtype, is_fortran, buffer):
            order: Any = "F" if is_fortran else "C"
        case "_frombuffer", (buffer, dtype, tuple() as shape, "C" | "F" as order), None:
            pass
        case _:
            raise _Refused(_NO_ARRAY)
    if not isinstance(buffer, bytes | bytearray):
        raise _Refused(_NO_ARRAY)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise _Refused("holds an array of a shape that makes no sense")
    flat = np.frombuffer(buffer, _dtype(dtype))
    flat.flags.writeable = False
    return flat.reshape(shape, order=order)


def _dtype(call: Any) -> np.dtype[Any]:
    """The dtype of numbers that a call of numpy would make."""
    match call:
        case _Call(
            name="dtype",
            arguments=(str() | bytes() as code, *_),
            state=(_, str() | bytes() as order, None, None, None, *_),
        ):
            code, order = (t.decode() if isinstance(t, bytes) else t for t in (code, order))
            if re.fullmatch("[<>|=]([iu][1248]|b1|f[248])", order + code):
                return np.dtype(order + code)
            raise _Refused(f"holds an array of dtype {code[:20]!r}")
    raise _Refused(_NO_ARRAY)
