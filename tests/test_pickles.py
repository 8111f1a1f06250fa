"""Pickles that mean harm, or are damaged."""

import contextlib
import os
import pickle
import struct
import tracemalloc
from random import Random

import numpy as np
import pytest
from cifar_files import WRITERS, rows

from mixer_bijectors.train.data.cifar_imagenet import read_arrays
from mixer_bijectors.train.data.pickles import read_pickle
from mixer_bijectors.train.io.errors import DataError


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def objects(item):
    array = np.empty(1, object)
    array[0] = item
    return array


PLAIN = b"(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def entry(pickled):
    """A batch whose images are what a pickle makes."""
    pickled = pickled.removeprefix(b"\x80\x04").removeprefix(b"\x80\x02")
    return b"\x80\x04}(\x8c\x04data" + pickled[:-1] + b"\x8c\x06labels]u."


def uint8_array(shape, content, dtype=b"u1", state=PLAIN):
    """An array as numpy pickles it, of any shape, dtype and bytes."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        + (b"(K\x01" + shape + b"cnumpy\ndtype\n\x8c" + bytes([len(dtype)]) + dtype)
        + (b"\x89\x88\x87R" + state)
        + (b"\x89" + content + b"tb.")
    )


def long(value):
    return b"\x8a\x08" + struct.pack("<q", value)


NESTED = b"\x80\x04}" + b"N" + b"\x85" * 10**6 + b"K\x01s."
EXPONENTIAL = (
    b"\x80\x04}"
    + b")"
    + b"\x94h\x00\x86"
    + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(1, 100))
)


def malice(sentinel):
    """Pickles that run something, or fill the memory, and what the message names."""
    touch = f"touch {sentinel}"
    code = f"open({str(sentinel)!r}, 'w')"
    one = b"C\x01\x00"
    dumps = pickle.dumps
    return {
        "system": (dumps(Call(os.system, touch), 2), "'posix.system'"),
        "system by a stacked name": (dumps(Call(os.system, touch), 4), "'posix.system'"),
        "os.system": (f"cos\nsystem\n(S'{touch}'\ntR.".encode(), "'os.system'"),
        "eval": (dumps(Call(eval, code), 4), "'builtins.eval'"),
        "eval of python 2": (dumps(Call(eval, code), 0), "'__builtin__.eval'"),
        "numpy.load": (dumps(Call(np.load, "x.npy"), 4), "'numpy.load'"),
        "in a batch": (
            dumps({b"data": rows(1), b"labels": Call(eval, code)}, 4),
            "'builtins.eval'",
        ),
        "in an object array": (dumps(objects(Call(eval, code)), 4), "'builtins.eval'"),
        "object array": (
            dumps({"data": objects(1), "labels": []}, 2),
            "than an array of numbers",
        ),
        "structured array": (dumps(np.zeros(1, "i4,O"), 4), "neither a shape nor an argument"),
        "text array": (dumps({"data": np.array(["a"]), "labels": []}, 4), "dtype 'U1'"),
        "scalar": (dumps(np.float64(1), 4), "core.multiarray.scalar'"),
        "attribute of a name": (
            b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
            "'numpy.ndarray.tofile'",
        ),
        "codecs": (b"c_codecs\ndecode\n.", "'_codecs.decode'"),
        "zip by encode": (
            b"\x80\x04c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0zip\x86R.",
            "something else than an array",
        ),
        "an instance": (f"(S'{touch}'\nios\nsystem\n.".encode(), "instruction INST"),
        "an instance of ndarray": (b"(I9\ninumpy\nndarray\n.", "instruction INST"),
        "obj": (b"(cnumpy\nndarray\nK\x09o.", "instruction OBJ"),
        "newobj": (b"\x80\x02cnumpy\nndarray\nK\x09\x85\x81.", "instruction NEWOBJ"),
        "newobj_ex": (b"\x80\x04cnumpy\nndarray\n)}\x92.", "instruction NEWOBJ_EX"),
        "extension": (b"\x80\x02\x82\x01.", "instruction EXT1"),
        "persistent id": (b"Peval\n.", "instruction PERSID"),
        "persistent object": (b"\x80\x02K\x01Q.", "instruction BINPERSID"),
        "buffer": (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        "a large ndarray": (
            b"cnumpy\nndarray\n(" + long(2**40) + b"tR.",
            "must be a dict",
        ),
        "state of a name": (b"\x80\x02cnumpy\nndarray\n}(U\x01aK\x01ub.", "damaged"),
        "attributes of a name": (
            b"\x80\x02cnumpy\nndarray\nN}\x86b.",
            "damaged",
        ),
        "attributes of a stand-in": (
            b"\x80\x02c_codecs\nencode\nN}U\x06budgetJ\xff\xff\xff\x7fs\x86b.",
            "damaged",
        ),
        "state of a stand-in's class": (b"\x80\x02cnumpy\ndtype\n}U\x04codeNsb.", "damaged"),
        "dtype with fields": (
            entry(uint8_array(b"K\x01\x85", one, state=b"(K\x03\x8c\x01|N)}KcKcK\x00tb")),
            "else than an array",
        ),
        "objects in the state": (
            entry(uint8_array(b"K\x01\x85", b"]N\x61")),
            "else than an array",
        ),
        "object dtype": (entry(uint8_array(b"K\x01\x85", one, b"O")), "dtype 'O'"),
        "dtype of terabytes": (
            entry(uint8_array(b"K\x01\x85", one, b"V9999999999999")),
            "dtype 'V9",
        ),
        "negative shape": (entry(uint8_array(b"J\xff\xff\xff\xff\x85", one)), "makes no sense"),
        "shape of terabytes": (entry(uint8_array(long(2**42) + b"\x85", one)), "damaged"),
        "no array to fill": (b"\x80\x02}}U\x01aK\x01sb.", "damaged"),
        "append to a name": (b"\x80\x02cnumpy\ndtype\nK\x01a.", "damaged"),
        "set in a list": (b"\x80\x02]K\x01K\x01s.", "damaged"),
        "key that overflows the stack": (NESTED, "neither a shape nor an argument"),
        "key that takes for ever": (
            EXPONENTIAL + b"K\x01s.",
            "neither a shape nor an argument",
        ),
        "key of arguments that take for ever": (
            b"\x80\x04}c_codecs\nencode\n\x94K\x01\x85\x94"
            + b"".join(
                b"h\x00h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94R" for i in range(1, 100)
            )
            + b"h\x64K\x01s.",
            "something else than an array",
        ),
        "bytes of exabytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"a.", "damaged"),
        "text of gigabytes": (b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.", "damaged"),
        "frame of exabytes": (
            b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"K\x01.",
            "damaged",
        ),
        "memo of gigabytes": (
            b"\x80\x02K\x01r" + struct.pack("<I", 2**32 - 1) + b".",
            "stores more values than it has",
        ),
        "long of many digits": (b"L" + b"9" * 10**5 + b"L\n.", "damaged"),
        "text encoded again and again": (
            b"\x80\x02c_codecs\nencode\nq\x00X\x10'\0\0"
            + b"a" * 10000
            + b"U\x06latin1\x86q\x01R"
            + b"h\x00h\x01R" * 1000
            + b".",
            "unpacks to",
        ),
        "nothing there": (b"", "damaged"),
        "an empty stack": (b"\x80\x02R.", "damaged"),
        "no stop": (b"\x80\x02K\x01", "damaged"),
        "two results": (b"\x80\x02K\x01K\x01.", "must be a dict, got int"),
        "a page of html": (b"<!DOCTYPE html><html></html>", "damaged"),
    }


@pytest.mark.parametrize("name", malice("sentinel"))
def test_nothing_of_a_pickle_is_run(tmp_path, name):
    sentinel = tmp_path / "sentinel"
    content, message = malice(sentinel)[name]
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_arrays(tmp_path, "test")
    assert message in str(caught.value)
    assert str(tmp_path / "test_batch") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not sentinel.exists()


def test_arrays_of_the_same_bytes_share_them(tmp_path):
    def short(text):
        return b"\x8c" + bytes([len(text)]) + text.encode()

    size, count = 1 << 20, 300
    pickled = b"\x80\x05}(" + short("a")
    pickled += b"\x96" + struct.pack("<Q", size) + bytes(size) + b"\x94"
    pickled += short("d") + short("numpy") + short("dtype") + b"\x93"
    pickled += short("u1") + b"\x85R" + PLAIN + b"\x94"
    pickled += short("f") + short("numpy.core.numeric") + short("_frombuffer") + b"\x93\x94"
    one = b"h\x02(h\x00h\x01J" + struct.pack("<i", size) + b"\x85" + short("C") + b"tR"
    pickled += b"".join(short(str(i)) + one for i in range(count)) + b"u."
    path = tmp_path / "batch"
    path.write_bytes(pickled)
    tracemalloc.start()
    arrays = read_pickle(path, [str(i) for i in range(count)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(isinstance(value, np.ndarray) for value in arrays.values()) == count
    assert peak < 8 * size


def test_the_sentinel_would_be_made(tmp_path):
    """So that its absence says something."""
    content, _ = malice(tmp_path / "sentinel")["system"]
    pickle.loads(content)
    assert (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("writer", ["python 2", "protocol 2", "protocol 4", "protocol 5"])
def test_damaged_pickles_raise_nothing_else(tmp_path, writer):
    """Bytes are changed around the pixels, and the file is cut anywhere."""
    content = WRITERS[writer](rows(1) % 128, [3])
    path = tmp_path / "test_batch"
    random = Random(0)
    ends = [*range(300), *range(len(content) - 100, len(content))]
    for trial in range(1500):
        damaged = bytearray(content)
        for _ in range(random.randint(1, 3)):
            damaged[random.choice(ends)] = random.choice(
                [*b"().RbsuaetNK\x85\x86", trial % 256]
            )
        if trial % 5 == 0:
            del damaged[random.choice(ends) :]
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            read_arrays(tmp_path, "test")
