"""Splits and classes of folders: right, an error, or told in a line."""

import os

import pytest
from image_folders import SHAPE, everything, make, read

from mixer_bijectors.train import DataError, Images

pytestmark = pytest.mark.usefixtures("datasets_cache")


# files, images that are read, labels, names of classes, and what the line says of it
LAYOUTS = {
    "flat": (["0.png", "1.png"], [0, 1], [None, None], None, "2 test images; no labels"),
    "classes": (
        ["cat/0.png", "dog/1.png", "cat/2.png"],
        [0, 2, 1],
        [0, 0, 1],
        ["cat", "dog"],
        "3 test images; 2 classes: 0 cat (2), 1 dog (1)",
    ),
    "subfolders of classes": (
        ["cat/left/0.png", "dog/left/1.png", "cat/right/2.png"],
        [0, 2, 1],
        [0, 0, 1],
        ["cat", "dog"],
        "2 classes: 0 cat (2), 1 dog (1)",
    ),
    "classes of unequal depth": (
        ["train/cat/0.png", "train/dog/big/1.png"],
        [0, 1],
        [0, 1],
        ["cat", "dog"],
        "0 cat (1), 1 dog (1)",
    ),
    "a single class": (["train/cat/0.png"], [0], [0], ["cat"], "1 class: 0 cat (1)"),
    "a single class at the top": (["cat/0.png"], [0], [0], ["cat"], "1 class: 0 cat (1)"),
    "a folder around all": (
        ["set/inner/cat/0.png", "set/inner/dog/1.png"],
        [0, 1],
        [0, 1],
        ["cat", "dog"],
        "0 cat (1), 1 dog (1)",
    ),
    "a folder around the classes of each split": (
        ["train/data/cat/0.png", "train/data/dog/1.png", "test/data/cat/2.png", "val/3.png"],
        [0, 1, 3, 2],
        [0, 1, None, 0],
        ["cat", "dog"],
        "0 cat (2), 1 dog (1); without a label: 1 of validation",
    ),
    "folders around the classes of some splits": (
        ["train/cat/big/0.png", "test/dog/big/1.png"],
        [0, 1],
        [0, 1],
        ["cat", "dog"],
        "0 cat (1), 1 dog (1); not in train: 1 dog",
    ),
    "a test split without classes": (
        ["train/cat/0.png", "train/dog/1.png", "test/2.png"],
        [0, 1, 2],
        [0, 1, None],
        ["cat", "dog"],
        "0 cat (1), 1 dog (1); without a label: 1 of test",
    ),
    "splits of other classes": (
        ["train/b/0.png", "train/c/1.png", "test/a/2.png", "test/c/3.png"],
        [0, 1, 2, 3],
        [1, 2, 0, 2],
        ["a", "b", "c"],
        "0 a (1), 1 b (1), 2 c (2); not in train: 0 a",
    ),
    "an image beside classes": (
        ["x.png", "cat/1.png", "dog/2.png"],
        [1, 2, 0],
        [0, 1, -1],
        ["cat", "dog"],
        "0 cat (1), 1 dog (1); without a label: 1 of train",
    ),
    "an image beside classes of a split": (
        ["test/0.png", "train/x.png", "train/cat/2.png"],
        [2, 1, 0],
        [0, -1, None],
        ["cat"],
        "1 class: 0 cat (1); without a label: 1 of train and 1 of test",
    ),
    "an image beside the splits": (
        ["train/cat/0.png", "x.png"],
        [0],
        [0],
        ["cat"],
        "left out: x.png (beside the splits)",
    ),
    "classes that differ by case in one split": (
        ["train/A/0.png", "train/a/1.png", "test/a/2.png"],
        [0, 1, 2],
        [0, 1, 1],
        ["A", "a"],
        "2 classes: 0 A (1), 1 a (2)",
    ),
    "a class composed in two ways": (
        ["train/\u00e9/0.png", "train/f/1.png", "test/e\u0301/2.png"],
        [1, 0, 2],
        [0, 1, 1],
        ["f", "\u00e9"],
        "0 f (1), 1 \u00e9 (2)",
    ),
    "hidden and system files": (
        ["a/0.PNG", "a/._0.png", "b/1.Jpeg", "@eaDir/2.png", "__MACOSX/a/0.png", ".git/x.png"],
        [0, 2],
        [0, 1],
        ["a", "b"],
        "left out: .git, @eaDir, __MACOSX and 1 other (hidden)",
    ),
    "classes whose names are numbers": (
        [f"{number}/0.png" for number in range(11)],
        [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9],
        list(range(11)),
        ["0", "1", "10", *"23456789"],
        "11 classes of 1 to 1 images; sorted as text, so that label 2 is the class 10",
    ),
    "a class that programs would hide": (
        ["__other__/0.png", "a/1.png"],
        [0, 1],
        [0, 1],
        ["__other__", "a"],
        "0 __other__ (1), 1 a (1)",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path, capsys):
    names, greys, labels, classes, line = LAYOUTS[layout]
    data = everything(make(tmp_path, *names))
    assert read(data) == (greys, labels)
    assert data.class_names == classes
    (printed,) = capsys.readouterr().out.splitlines()
    assert printed.startswith(f"{tmp_path}: ") and printed.endswith(line)


WRONG = {
    "two folders of one split": (
        ["train/0.png", "val/1.png", "validation/2.png"],
        "val, validation name one split",
    ),
    "splits beside classes": (
        ["test/0.png", "dog/1.png"],
        "test, which are splits, beside dog",
    ),
    "classes spelled in two ways": (
        ["train/Cat/0.png", "train/dog/1.png", "test/cat/2.png"],
        "the classes Cat of train and cat of test differ by case alone",
    ),
    "splits inside of folders": (
        ["set/train/0.png", "set/test/1.png", "x.png"],
        "set has the folders test, train, which are splits; name it as the path",
    ),
    "splits inside of classes": (
        [f"{name}/{split}/0.png" for name in ("cat", "dog") for split in ("train", "test")],
        "cat has the folders test, train, which are splits; name it as the path or, if cat, "
        "dog are classes, put the splits above them, as test/cat$",
    ),
    "no format that is read": ([], "holds no images, but a.fits .of no format that is read"),
}


@pytest.mark.parametrize("layout", WRONG)
def test_what_cannot_be_meant(layout, tmp_path):
    names, message = WRONG[layout]
    make(tmp_path, *names)
    (tmp_path / "a.fits").write_text("")
    with pytest.raises(DataError, match=message) as caught:
        everything(tmp_path).setup("fit")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "val", "test"), [(2, 0.5, 0.5), (4, 0.1, 0.9), (1, 0.1, 0.1)]
)
def test_shares_that_leave_nothing_to_train_on(count, val, test, tmp_path):
    make(tmp_path, *(f"{i}.png" for i in range(count)))
    message = (
        f"val_split={val} and test_split={test} leave nothing to train on of the {count} im"
    )
    with pytest.raises(DataError, match=message):
        Images(tmp_path, SHAPE, val_split=val, test_split=test).setup("fit")


def test_names_that_are_no_text(tmp_path, capsys):
    make(tmp_path, "cat/0.png", "dog/1.png")
    os.rename(tmp_path / "cat" / "0.png", os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")
    os.rename(tmp_path / "dog", os.fsencode(tmp_path) + b"/new\nline\xe9")
    data = everything(tmp_path)
    assert read(data) == ([0, 1], [0, 1])
    assert data.class_names == ["cat", "new\\nline\\xe9"]
    assert data.sources["test"].name(0).endswith("caf\\xe9.png")
    capsys.readouterr().out.encode("ascii")
