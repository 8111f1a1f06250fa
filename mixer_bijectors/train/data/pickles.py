"""Plain data and arrays of numbers out of pickles that may mean harm, as CIFAR's may.

A pickle is a program. Python's unpickler runs it, but looks up what the program names in
`find_class`, which gives it nothing but the stand-ins below. They hold what an array consists
of and call nothing. Two things are left that an unpickler by itself does not bound, memory and
the hashing of nested tuples, so the instructions are looked through before they are run.
"""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.errors import DataError

__all__ = ["read_pickle"]


class _Refused(Exception):  # noqa: N818
    """Says what a pickle asks for that plain data and arrays do not need."""


def read_pickle(path: Path) -> Any:
    """Plain data of a pickle, or a dict of such and of arrays; Python 2's strings are bytes.

    Raises:
        DataError: the file asks for anything else, or is damaged.
    """
    try:
        content = path.read_bytes()
        _check(content)
        result = _Unpickler(content).load()
    except _Refused as refused:
        raise DataError(
            f"{path}: not read and nothing of it run, since the pickle {refused}, and a data "
            "set needs plain data and arrays of numbers alone"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        # A damaged file surfaces as half a dozen kinds, from pickle, pickletools and numpy.
        raise DataError(
            f"{path}: the pickle is cut short or damaged; download it again"
        ) from error
    if not isinstance(result, dict):
        return result
    return {k: v.values if isinstance(v, _Array) else v for k, v in result.items()}


# Instructions that are allowed, each as a letter: i for whole numbers, ( for the mark, digits
# and t for tuples, c for what takes a tuple of arguments, nothing for what changes no value.
_LETTERS = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), "i"),
    **{"MARK": "(", "TUPLE": "t", "TUPLE1": "1", "TUPLE2": "2", "TUPLE3": "3"},
    **dict.fromkeys(("REDUCE", "BUILD"), "c"),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "PROTO", "FRAME"), ""),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE"), "-"),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), "-"),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), "-"),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), "-"),
    **dict.fromkeys(("EMPTY_LIST", "LIST", "APPEND", "APPENDS"), "-"),
    **dict.fromkeys(("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"), "-"),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "STOP"), "-"),
}


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
    # whole numbers, as shapes do, or is at once the argument of a stand-in, which looks at it.
    if re.search("[123t]", re.sub(r"i1|ii2|iii3|\(i*t|[123t]c", "", "".join(letters))):
        raise _Refused("has a tuple that is neither a shape nor an argument")


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, for which the stand-ins are all that can be named."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.encode = _Encode(len(content))

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return _Array
            case "numpy.core.numeric" | "numpy._core.numeric", "_frombuffer":
                return _ArrayOfBuffer
            case "numpy", "ndarray":
                return None
            case "numpy", "dtype":
                return _DType
            case "_codecs", "encode":
                return self.encode
        raise _Refused(f"asks for {f'{module}.{name}'[:80]!r}")


class _Encode:
    """Stands for `_codecs.encode`, by which protocols before 3 write bytes."""

    def __init__(self, budget: int) -> None:
        # Text encodes to no more than it takes in the file, unless the same is encoded again
        # and again to fill the memory.
        self.budget = budget

    def __call__(self, *arguments: Any) -> bytes:
        match arguments:
            case (str() as text, "latin1" | b"latin1"):
                self.budget -= len(text)
                if self.budget < 0:
                    raise _Refused("holds less than it unpacks to")
                return text.encode("latin-1")
        raise _Refused("makes something else than an array")

    def __setstate__(self, state: Any) -> None:
        raise _Refused("sets the state of something else than an array of numbers")


class _DType:
    """Stands for `numpy.dtype`: the dtype of numbers."""

    def __init__(self, *arguments: Any) -> None:
        match arguments:
            case (str() | bytes() as code, *flags) if all(
                type(f) in (int, bool) for f in flags
            ):
                self.code = _text(code)
            case _:
                raise _Refused("makes something else than an array")
        if not re.fullmatch("b1|[iu][1248]|f[248]", self.code):
            raise _Refused(f"holds an array of dtype {self.code[:20]!r}")
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), str() | bytes() as order, None, None, None, int(), int(), int()):
                self.order = _text(order)
            case _:
                raise _Refused("sets the state of something else than an array of numbers")
        if self.order not in ("<", ">", "|", "="):
            raise _Refused("holds an array of unknown byte order")


class _Array:
    """Stands for numpy's `_reconstruct`: an array whose values are set afterwards."""

    values: NDArray[Any] | None = None

    def __init__(self, *arguments: Any) -> None:
        match arguments:
            case (None, (0,), str() | bytes()):
                return
        raise _Refused("makes something else than an array")

    def __setstate__(self, state: Any) -> None:
        match state:
            case (
                int(),
                tuple() as shape,
                _DType() as dtype,
                int() as fortran,
                bytes() as buffer,
            ):
                self.fill(buffer, dtype, shape, "F" if fortran else "C")
            case _:
                raise _Refused("sets the state of something else than an array of numbers")

    def fill(self, buffer: bytes | bytearray, dtype: _DType, shape: Any, order: Any) -> None:
        """Set the values to a view of bytes of the file, so that repeats cost no memory."""
        flat = np.frombuffer(buffer, np.dtype(dtype.order + dtype.code))
        flat.flags.writeable = False
        if not all(type(size) is int and size >= 0 for size in shape):
            raise _Refused("holds an array of a shape that makes no sense")
        self.values = flat.reshape(shape, order=order)


class _ArrayOfBuffer(_Array):
    """Stands for numpy's `_frombuffer`, by which protocol 5 writes arrays."""

    def __init__(self, *arguments: Any) -> None:
        match arguments:
            case (
                bytes() | bytearray() as buffer,
                _DType() as dtype,
                tuple() as shape,
                "C" | "F",
            ):
                self.fill(buffer, dtype, shape, arguments[3])
            case _:
                raise _Refused("makes something else than an array")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
