"""Plain data and arrays out of pickles, without running them.

A pickle is a program, and an unpickler runs it. Python's own, even one that is told which names
it may look up, calls what it allows with arguments of the file's choice, and allocates what the
file asks for. Here the few instructions that lists, dicts, numbers, text and arrays of numbers
need are played back; what a file calls by name is looked up in a table and never imported.
"""

import enum
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..io.errors import DataError

__all__ = ["read_pickle"]


class _Refused(Exception):  # noqa: N818
    """What a pickle asks for that plain data and arrays do not need."""


class _Name(enum.Enum):
    """What a pickle may name; these stand for the functions, which are never called."""

    RECONSTRUCT = enum.auto()
    FROMBUFFER = enum.auto()
    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()


_NAMES = {
    "numpy.core.multiarray _reconstruct": _Name.RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _Name.RECONSTRUCT,
    "numpy.core.numeric _frombuffer": _Name.FROMBUFFER,
    "numpy._core.numeric _frombuffer": _Name.FROMBUFFER,
    "numpy ndarray": _Name.NDARRAY,
    "numpy dtype": _Name.DTYPE,
    "_codecs encode": _Name.ENCODE,
}
# Instructions by what becomes of their argument.
_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_VALUES |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_PYTHON_2_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _DType:
    """A dtype of numbers in the making."""

    code: str
    order: str = "|"


@dataclass
class _Array:
    """An array in the making."""

    values: NDArray[Any] | None = None

    def fill(
        self, shape: Any, dtype: _DType, buffer: bytes | bytearray, order: Literal["C", "F"]
    ) -> None:
        # A view of bytes that came with the file, so false shapes and repeats cost no memory.
        flat = np.frombuffer(buffer, np.dtype(dtype.order + dtype.code))
        flat.flags.writeable = False
        if not all(type(size) is int and size >= 0 for size in shape):
            raise _Refused("holds an array of a shape that makes no sense")
        self.values = flat.reshape(shape, order=order)


def read_pickle(path: Path) -> Any:
    """Plain data of a pickle, or a dict of such and of arrays; Python 2's strings are bytes.

    Raises:
        DataError: the file asks for anything else, or is damaged.
    """
    try:
        result = _Machine(path.read_bytes()).run()
    except _Refused as refused:
        raise DataError(
            f"{path}: not read and nothing of it run, since the pickle {refused}, and a data "
            "set needs plain data and arrays of numbers alone"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        # A damaged file surfaces as half a dozen kinds, from pickletools, numpy and the stack.
        raise DataError(
            f"{path}: the pickle is cut short or damaged; download it again"
        ) from error
    if not isinstance(result, dict):
        return result
    return {k: v.values if isinstance(v, _Array) else v for k, v in result.items()}


class _Machine:
    """Plays back the instructions of one pickle, as pickletools parses them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        # Text encodes to no more than it takes in the file, unless the same is encoded again
        # and again to fill the memory.
        self.to_encode = len(data)

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.data):
            self.step(opcode.name, argument)
        (result,) = self.stack
        return result

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _PYTHON_2_STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple(self.pop(_TUPLES[name])))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name == "LIST":
            stack.append(self.since_mark())
        elif name == "DICT":
            items = self.since_mark()
            stack.append({})
            self.set_items(items)
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.since_mark()
            self.target(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop(2) if name == "SETITEM" else self.since_mark())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_look_up(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = self.pop(2)
            stack.append(_look_up(f"{_text(module)} {_text(attribute)}"))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            stack.append(self.make(function, arguments))
        elif name == "BUILD":
            (state,) = self.pop(1)
            _build(stack[-1], state)
        elif name == "INST":
            _look_up(argument)
            raise _Refused("makes an object")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"uses the instruction {name}")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the stack is too short")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def target(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise _Refused(f"treats a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2]):
            # The hash of nested tuples takes exponential time, or all of the C stack.
            if type(key) not in (str, bytes, int):
                raise _Refused(f"has a {type(key).__name__} for a key")
            self.target(dict)[key] = value

    def make(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case _Name.DTYPE, (str() | bytes() as code, *_):
                return _DType(_number_code(_text(code)))
            case _Name.ENCODE, (str() as text, "latin1" | b"latin1"):
                self.to_encode -= len(text)
                if self.to_encode < 0:
                    raise _Refused("holds less than it unpacks to")
                return text.encode("latin-1")
            case _Name.RECONSTRUCT, (_Name.NDARRAY, _, _):
                return _Array()
            case _Name.FROMBUFFER, (
                bytes() | bytearray() as buffer,
                _DType() as dtype,
                tuple() as shape,
                "C" | "F" as order,
            ):
                array = _Array()
                array.fill(shape, dtype, buffer, order)
                return array
        raise _Refused("makes something else than an array")


def _look_up(name: str) -> _Name:
    if name not in _NAMES:
        raise _Refused(f"asks for {name.replace(' ', '.', 1)[:80]!r}")
    return _NAMES[name]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str.__str__(value)


def _number_code(code: str) -> str:
    if not re.fullmatch("b1|[iu][1248]|f[248]", code):
        raise _Refused(f"holds an array of dtype {code[:20]!r}")
    return code


def _build(target: Any, state: Any) -> None:
    match target, state:
        case _DType(), (_, str() | bytes() as order, None, None, None, *_):
            if _text(order) not in ("<", ">", "|", "="):
                raise _Refused("holds an array of unknown byte order")
            target.order = _text(order)
        case _Array(), (_, tuple() as shape, _DType() as dtype, fortran, bytes() as buffer):
            target.fill(shape, dtype, buffer, "F" if fortran == 1 else "C")
        case _:
            raise _Refused("sets the state of something else than an array of numbers")
