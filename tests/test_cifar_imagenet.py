"""Datasets in their authors' own files, and files that mean harm."""

import contextlib
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from random import Random

import numpy as np
import pytest

from mixer_bijectors.train.data.cifar_imagenet import Arrays, find_format, read_arrays
from mixer_bijectors.train.data.labels import Labels
from mixer_bijectors.train.data.pickles import read_pickle
from mixer_bijectors.train.io.errors import DataError

RNG = np.random.default_rng(0)


def rows(count, side=32):
    return RNG.integers(0, 256, (count, 3 * side * side), dtype=np.uint8)


def python_2_pickle(data, labels, key=b"labels"):
    """What cPickle of Python 2 with its numpy writes, as in the original files."""

    def short(text, index):
        return b"U" + bytes([len(text)]) + text + b"q" + bytes([index])

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
    array += short(b"b", 6) + b"\x87Rq\x07(K\x01"
    array += b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86q\x08"
    array += b"cnumpy\ndtype\nq\x09" + short(b"u1", 10) + b"K\x00K\x01\x87Rq\x0b(K\x03"
    array += short(b"|", 12) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    content = data.tobytes()
    array += b"T" + struct.pack("<i", len(content)) + content + b"q\x0dtb"
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01("
        + short(b"data", 2)
        + array
        + short(key, 14)
        + b"]q\x0f("
        + numbers
        + b"e"
        + short(b"batch_label", 16)
        + short(b"training batch 1 of 5", 17)
        + b"u."
    )


def of_protocol(protocol, text=False, renamed=False, convert=list):
    def write(data, labels, key=b"labels"):
        batch = {b"data": data, key: convert(labels), b"batch_label": b"one"}
        if text:
            batch = {name.decode(): value for name, value in batch.items()}
        written = pickle.dumps(batch, protocol)
        # protocol 2 ends names with a line, so that they may change in length
        return written.replace(b"numpy._core", b"numpy.core") if renamed else written

    return write


WRITERS = {
    "python 2": python_2_pickle,
    **{f"protocol {p}": of_protocol(p) for p in range(2, 6)},
    "numpy 1": of_protocol(2, renamed=True),
    "text keys": of_protocol(4, text=True),
    "label array": of_protocol(4, convert=np.array),
    "big-endian label array": of_protocol(4, convert=lambda y: np.array(y, ">i4")),
    "bytes labels": of_protocol(4, convert=lambda y: np.array(y, np.uint8)),
    "columns": lambda data, labels, key=b"labels": of_protocol(5)(
        np.asfortranarray(data), labels, key
    ),
}


def pixels_of(arrays):
    return np.stack([arrays[index].image for index in range(len(arrays))])


def write_cifar_10(folder, write=python_2_pickle, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    written = {}
    for name in names:
        data, labels = rows(count), RNG.integers(0, 10, count).tolist()
        (folder / name).write_bytes(write(data, labels))
        written[name] = data.reshape(-1, 3, 32, 32), labels
    return written


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["", "cifar-10-batches-py"])
def test_cifar_10(tmp_path, writer, place):
    written = write_cifar_10(tmp_path / place, WRITERS[writer])
    assert find_format(tmp_path) == "cifar"
    arrays = read_arrays(tmp_path, "train")
    assert arrays.labels.values.dtype == np.int64 and len(arrays) == 20
    images = np.concatenate([written[f"data_batch_{i}"][0] for i in range(1, 6)])
    labels = [label for i in range(1, 6) for label in written[f"data_batch_{i}"][1]]
    assert arrays.labels.values.tolist() == labels
    assert np.array_equal(pixels_of(arrays), images)
    assert [arrays[i].label for i in range(20)] == labels
    assert arrays[0].image.dtype == np.uint8 and arrays[0].image.flags.writeable
    test = read_arrays(tmp_path, "test")
    assert np.array_equal(test[1][0], written["test_batch"][0][1])


@pytest.mark.parametrize("writer", ["python 2", "protocol 4"])
@pytest.mark.parametrize("place", ["", "cifar-100-python"])
def test_cifar_100(tmp_path, writer, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    data = rows(3)
    for name, labels in (("train", [0, 99, 7]), ("test", [5, 6, 98])):
        (folder / name).write_bytes(WRITERS[writer](data, labels, b"fine_labels"))
    arrays = read_arrays(tmp_path, "train")
    assert arrays.labels.values.tolist() == [0, 99, 7]
    assert np.array_equal(arrays[2][0], data[2].reshape(3, 32, 32))
    assert read_arrays(tmp_path, "test").labels.values.tolist() == [5, 6, 98]


def test_folders_of_something_else(tmp_path):
    for name in ("train", "test"):  # an image folder, not CIFAR-100
        (tmp_path / name).mkdir()
    assert find_format(tmp_path) is None
    assert find_format(tmp_path / "missing") is None
    with pytest.raises(DataError, match="no pickles of CIFAR and no npz files"):
        read_arrays(tmp_path, "train")


def test_both_sets_in_one_folder(tmp_path):
    write_cifar_10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"")
    with pytest.raises(DataError, match=r"more than one data set, in .*10.* and .*100"):
        read_arrays(tmp_path, "train")


def test_missing_batches_and_splits(tmp_path):
    write_cifar_10(tmp_path)
    for name in ("data_batch_2", "data_batch_5"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="missing data_batch_2, data_batch_5;"):
        read_arrays(tmp_path, "train")
    assert len(read_arrays(tmp_path, "test")) == 4


WRONG = {
    "columns": ({b"data": rows(2, 31), b"labels": [0, 1]}, "32 pixels, not 31"),
    "no square": ({b"data": rows(2)[:, :-3], b"labels": [0, 1]}, "2 rows of 3069 values"),
    "dtype": ({b"data": rows(2).astype("f4"), b"labels": [0, 1]}, r"got float32 \(2, 3072\)"),
    "flat": ({b"data": rows(2)[0], b"labels": [0, 1]}, r"got uint8 \(3072,\)"),
    "empty": ({b"data": rows(0), b"labels": []}, "0 rows"),
    "no array": ({b"data": [1], b"labels": [0, 1]}, "got list"),
    "no data": ({b"labels": [0, 1]}, "no entry 'data'"),
    "no labels": ({b"data": rows(2)}, "no entry 'labels'"),
    "a list": ([rows(2)], "must be a dict, got list"),
    "a number": (3, "must be a dict, got int"),
    "count": ({b"data": rows(2), b"labels": [0]}, r"2 images but labels of shape \(1,\)"),
    "nested": ({b"data": rows(2), b"labels": [[0], [1]]}, "whole numbers, got list"),
    "halves": ({b"data": rows(2), b"labels": [0.5, 1]}, "whole numbers, got list"),
    "none": ({b"data": rows(2), b"labels": None}, "whole numbers, got nothing"),
    "high": ({b"data": rows(2), b"labels": [0, 10]}, "image 1 is not from 0 to 9"),
    "low": ({b"data": rows(2), b"labels": np.array([-1, 0])}, "image 0 is not from 0 to 9"),
    "huge": ({b"data": rows(2), b"labels": [0, 10**30]}, "image 1 is not from 0 to 9"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_batch_that_is_wrong(tmp_path, name):
    batch, message = WRONG[name]
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, 4))
    with pytest.raises(DataError, match=message) as caught:
        read_arrays(tmp_path, "test")
    assert str(tmp_path / "test_batch") in str(caught.value)
    assert "\n" not in str(caught.value)


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


# downsampled ImageNet


def write_npz(folder, save=np.savez, count=2, side=8, batches=10):
    written = {}
    for name in [f"train_data_batch_{i}" for i in range(1, batches + 1)] + ["val_data"]:
        data, labels = rows(count, side), RNG.integers(1, 1001, count)
        labels[0] = 1000
        save(folder / f"{name}.npz", data=data, labels=labels, mean=data.mean(0))
        written[name] = data.reshape(-1, 3, side, side), labels
    return written


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("side", [8, 32, 64])
def test_npz(tmp_path, save, side):
    written = write_npz(tmp_path, save, side=side)
    assert find_format(tmp_path) == "npz"
    arrays = read_arrays(tmp_path, "train")
    assert all(isinstance(b, np.memmap) == (save is np.savez) for b in arrays.images)
    images = np.concatenate([written[f"train_data_batch_{i}"][0] for i in range(1, 11)])
    labels = np.concatenate([written[f"train_data_batch_{i}"][1] for i in range(1, 11)])
    assert np.array_equal(pixels_of(arrays), images)
    assert arrays.labels.values.tolist() == (labels - 1).tolist()
    assert type(arrays[0].image) is np.ndarray and arrays[0][0].flags.writeable
    held_out = read_arrays(tmp_path, "test")
    assert held_out[0].label == 999
    assert np.array_equal(held_out[1].image, written["val_data"][0][1])


def test_mapped_arrays_are_sent_as_a_place_in_a_file(tmp_path):
    write_npz(tmp_path, count=50)
    arrays = read_arrays(tmp_path, "train")
    sent = pickle.dumps(arrays)
    assert len(sent) < 50 * 10 * 3 * 8 * 8 / 10
    again = pickle.loads(sent)
    assert isinstance(again.images[3], np.memmap)
    assert np.array_equal(pixels_of(again), pixels_of(arrays)) and again[7][1:] == arrays[7][1:]
    in_memory = Arrays([rows(2, 8).reshape(2, 3, 8, 8)], Labels(np.array([0, 1])))
    assert np.array_equal(pickle.loads(pickle.dumps(in_memory))[1][0], in_memory[1][0])


def test_a_member_behind_a_local_header_of_another_size(tmp_path):
    """And behind bytes that are no part of the zip."""
    data, labels = rows(2, 8), np.array([1, 2])
    path = tmp_path / "val_data.npz"
    with path.open("wb") as file:
        file.write(b"#" * 77)
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in (("labels", labels), ("data", data)):
                # the local header alone has room for sizes of 64 bits
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array)
    arrays = read_arrays(tmp_path, "test")
    assert isinstance(arrays.images[0], np.memmap)
    assert np.array_equal(arrays[1][0], data[1].reshape(3, 8, 8))


def test_columns_first(tmp_path):
    data = rows(2, 8)
    np.savez(tmp_path / "val_data.npz", data=np.asfortranarray(data), labels=[1, 2])
    assert np.array_equal(read_arrays(tmp_path, "test")[1][0], data[1].reshape(3, 8, 8))


def npy(array, shape=None, descr=None):
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    header.update({"shape": shape} if shape else {}, **({"descr": descr} if descr else {}))
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


ONES = npy(np.array([1, 2]))
WRONG_NPZ = {
    "no data": ({"labels": ONES}, "no array 'data'"),
    "no labels": ({"data": npy(rows(2, 8))}, "no array 'labels'"),
    "count": ({"data": npy(rows(3, 8)), "labels": ONES}, "3 images but labels"),
    "zero": ({"data": npy(rows(2, 8)), "labels": npy(np.array([1, 0]))}, "image 1 is not from"),
    "1001": ({"data": npy(rows(2, 8)), "labels": npy(np.array([1001, 1]))}, "image 0 is not"),
    "no square": ({"data": npy(rows(2, 8)[:, 3:]), "labels": ONES}, "2 rows of 189 values"),
    "empty": ({"data": npy(rows(0, 8)), "labels": npy(np.ones(0, int))}, "0 rows"),
    "float": ({"data": npy(rows(2, 8).astype("f4")), "labels": ONES}, "got float32"),
    "terabytes": (
        {"data": npy(rows(2, 8), shape=(2**33, 192)), "labels": ONES},
        "'data' is not as long as its header says",
    ),
    "short": (
        {"data": npy(rows(2, 8), shape=(1, 192)), "labels": ONES},
        "'data' is not as long as its header says",
    ),
    "objects": ({"data": npy(rows(2, 8), descr="|O"), "labels": ONES}, "of dtype object"),
    "text": ({"data": npy(rows(2, 8)), "labels": npy(np.array(["a", "b"]))}, "of dtype <U1"),
    "no header": ({"data": b"\x93NUMPY\x01\0", "labels": ONES}, "damaged"),
    "no array": ({"data": b"\x80\x04K\x01.", "labels": ONES}, "damaged"),
    "bad header": ({"data": ONES.replace(b"descr", b"((((("), "labels": ONES}, "damaged"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", WRONG_NPZ)
def test_an_npz_that_is_wrong(tmp_path, name, compression):
    members, message = WRONG_NPZ[name]
    path = tmp_path / "val_data.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in members.items():
            archive.writestr(f"{member}.npy", content)
    with pytest.raises(DataError, match=message) as caught:
        read_arrays(tmp_path, "test")
    assert str(path) in str(caught.value)


def test_missing_npz_and_another_size(tmp_path):
    write_npz(tmp_path, batches=9)
    with pytest.raises(DataError, match=r"missing train_data_batch_10\.npz"):
        read_arrays(tmp_path, "train")
    np.savez(tmp_path / "train_data_batch_10.npz", data=rows(1, 16), labels=[1])
    with pytest.raises(DataError, match=r"batch_10.npz: images of 16 x 16 .* have 8 x 8"):
        read_arrays(tmp_path, "train")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz_raise_nothing_else(tmp_path, save):
    path = tmp_path / "val_data.npz"
    save(path, data=rows(2, 8), labels=[1, 2])
    content = path.read_bytes()
    random = Random(0)
    for trial in range(600):
        damaged = bytearray(content)
        for _ in range(random.randint(1, 4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        if trial % 3 == 0:
            del damaged[random.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            read_arrays(tmp_path, "test")
