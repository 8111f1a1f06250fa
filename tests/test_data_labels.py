"""Labels of splits that name their classes each in their own way."""

import pickle

import datasets
import pytest
from image_files import make_cifar
from image_folders import AB, SHAPE, everything, make, make_rows, read

from mixer_bijectors.train import DataError, Images

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.mark.parametrize("text", ["", "file_name,label\nn/1.png,x\nn/2.png,y\n"])
def test_classes_of_a_split_that_is_not_used_take_no_numbers(text, tmp_path, capsys):
    """As of Tiny-ImageNet, whose folder `val/images` is no class."""
    make(tmp_path, *(f"{s}/n0{i % 2 + 1}/{i}.png" for s in ("train", "test") for i in range(4)))
    make(tmp_path, "val/images/0.png", "val/n/1.png", "val/n/2.png")
    if text:
        (tmp_path / "val" / "metadata.csv").write_text(text)
    data = Images(tmp_path, SHAPE, val_split=0.25)
    assert read(data) == ([4, 6, 5, 7], [0, 0, 1, 1])
    assert data.class_names == ["n01", "n02"]
    line = "2 classes: 0 n01 (4), 1 n02 (4); not used: validation (3)\n"
    assert capsys.readouterr().out.endswith(line)


def test_numbers_beside_classes_of_a_split_that_is_not_used(tmp_path):
    make(tmp_path, "train/0.png", "train/1.png", "train/2.png", "test/cat/3.png")
    (tmp_path / "train" / "metadata.csv").write_text(
        "file_name,label\n0.png,1\n1.png,1\n2.png,1\n"
    )
    data = Images(tmp_path, SHAPE, val_split=0.3, test_split=0.3)
    assert read(data)[1] == [1] and data.class_names is None
    rows = {"train": make_rows([1, 1, 1]), "test": make_rows([0, 1], AB)}
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "rows")
    data = Images(tmp_path / "rows", SHAPE, val_split=0.3, test_split=0.3)
    assert read(data)[1] == [1] and data.class_names is None


def test_splits_whose_classes_are_in_another_order(tmp_path):
    ba = datasets.ClassLabel(names=["b", "new", "a"])
    splits = {"test": make_rows([0, 1, 2, -1], ba, 2), "train": make_rows([0, 1], AB)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "data")
    data = everything(tmp_path / "data")
    assert read(data) == ([2, 3, 4, 5, 0, 1], [1, 2, 0, -1, 0, 1])
    assert data.class_names == ["a", "b", "new"]
    splits["train"] = make_rows([0, 1])
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "mixed")
    with pytest.raises(
        DataError, match="of the split test have names, and those of train numb"
    ):
        read(everything(tmp_path / "mixed"))
    case = datasets.ClassLabel(names=["A", "b"])
    splits = {"train": make_rows([0, 1], AB), "test": make_rows([0, 1], case)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "case")
    with pytest.raises(DataError, match="classes a of train and A of test differ by case"):
        read(everything(tmp_path / "case"))


def save_twice(rows, folder, split):
    rows.save_to_disk(folder / split)


def save_as_parquet(rows, folder, split):
    rows.to_parquet(folder / f"{split}-0.parquet")


@pytest.mark.parametrize("save", [save_as_parquet, save_twice])
def test_classes_that_the_files_of_a_split_name(save, tmp_path, capsys):
    """Each split has classes of its own, whatever those of the file that is read first."""
    bc = datasets.ClassLabel(names=["b", "c"])
    save(make_rows([0, 1], AB), tmp_path, "train")
    save(make_rows([0, 1], bc, 2), tmp_path, "test")
    data = everything(tmp_path)
    assert read(data) == ([2, 3, 0, 1], [1, 2, 0, 1])
    assert data.class_names == ["a", "b", "c"]
    assert "0 a (1), 1 b (2), 2 c (1); not in train: 2 c" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second", "classes"),
    [
        (AB, datasets.ClassLabel(names=["b", "c"]), ("b, c", "a, b")),
        (AB, None, ("without names", "a, b")),
        (None, AB, ("a, b", "without names")),
    ],
)
def test_files_of_one_split_that_name_other_classes(first, second, classes, tmp_path):
    make_rows([0, 1], first).to_parquet(tmp_path / "a.parquet")
    make_rows([0, 1], second).to_parquet(tmp_path / "b.parquet")
    message = r"b\.parquet are {}, and those of .*a\.parquet {}; they must".format(*classes)
    with pytest.raises(DataError, match=message):
        everything(tmp_path).setup("fit")


def test_names_of_the_classes_of_cifar(tmp_path):
    names = [f"class {number}" for number in range(10)]
    assert Images(make_cifar(tmp_path / "c")).class_names is None
    (tmp_path / "c" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    assert Images(tmp_path / "c").class_names == names
    (tmp_path / "c" / "batches.meta").write_bytes(pickle.dumps({"label_names": names[:3]}))
    with pytest.raises(DataError, match=r"batches\.meta: it does not name 10 classes"):
        Images(tmp_path / "c").setup("fit")
