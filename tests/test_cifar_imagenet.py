"""Datasets in their authors' own files."""

import contextlib
import io
import pickle
import zipfile
from random import Random

import numpy as np
import pytest
from cifar_files import RNG, WRITERS, python_2_pickle, rows

from mixer_bijectors.train.data.cifar_imagenet import Arrays, find_format, read_arrays
from mixer_bijectors.train.data.labels import Labels
from mixer_bijectors.train.io.errors import DataError


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
