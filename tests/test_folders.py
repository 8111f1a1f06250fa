"""Which images a path means and of which classes: right, an error, or told in a line."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data_images import encode, make_cifar, picture

from mixer_bijectors.train import DataError, Images
from mixer_bijectors.train.tasks.score import images_like

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    datasets.disable_progress_bars()


def make(root, *names):
    """Image files; the grey of each says which one it is."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(value, (8, 8), "L").save(path, "PNG")
    return root


def make_rows(labels, kind=None, start=0, key="label"):
    images = [
        {"bytes": encode(picture(start + i, (8, 8), "L")), "path": None}
        for i in range(len(labels))
    ]
    features = None
    if kind is not None:
        features = datasets.Features({"image": datasets.Image(), key: kind})
    return datasets.Dataset.from_dict({"image": images, key: labels}, features)


def read(data):
    """Grey and label of each image."""
    data.setup("fit")
    source = data.sources["test"]
    read = [source.read(index, None) for index in range(len(source))]
    return [int(pixels[0, 0, 0]) for pixels, _ in read], [label for _, label in read]


def everything(path):
    return Images(path, SHAPE, test_split="all")


# which folder or file


def make_folder_at(path):
    return make(path, "0.png", "1.png")


def make_parquet_at(path):
    path.mkdir()
    make_rows([7, 7]).to_parquet(path / "train.parquet")
    return path


def make_file_at(path):
    make_rows([7, 7]).to_parquet(path.with_name(f"{path.name}.parquet"))
    return path.with_name(f"{path.name}.parquet")


def make_disk_at(path):
    make_rows([7, 7]).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    "name", ["run[12]", "what?", "st*r", "**", "[!a]", "a b", "é", "x#%20y", "{a,b}", "~"]
)
@pytest.mark.parametrize("form", [make_folder_at, make_parquet_at, make_file_at, make_disk_at])
def test_characters_of_patterns_mean_themselves(form, name, tmp_path):
    for neighbour in ("run1", "run2", "whatA", "star", "b", "a"):
        make(tmp_path / neighbour, "0.png", "1.png", "2.png", "3.png")
        make_rows([5, 5, 5]).to_parquet(tmp_path / f"{neighbour}.parquet")
    path = form(tmp_path / name)
    for given in (path, str(path), images_like(Images("x"), str(path), SHAPE)):
        data = given if isinstance(given, Images) else everything(given)
        assert read(data) == ([0, 1], [None if form is make_folder_at else 7] * 2)


def test_ways_to_write_a_path(tmp_path, monkeypatch):
    make(tmp_path / "far" / "x", "cat/0.png")
    make(tmp_path / "x", "cat/0.png", "dog/1.png")
    (tmp_path / "far" / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("x", "x/", "./x", "~/x", "far/../x", tmp_path / "x", f"{tmp_path}/x//"):
        data = everything(path)
        assert read(data) == ([0, 1], [0, 1]), path
        name = data.sources["test"].name(0)
        assert os.path.isabs(name) and os.path.samefile(name, "x/cat/0.png")
    assert read(everything("link/../x")) == ([0], [0])


@pytest.mark.parametrize("name", ["a::b", "a$HOME", "caf\udce9"])
@pytest.mark.parametrize("form", [make_parquet_at, make_file_at, make_disk_at])
def test_names_that_datasets_takes_for_others(form, name, tmp_path):
    plain = form(tmp_path / "plain")
    path = plain.rename(tmp_path / plain.name.replace("plain", name))
    with pytest.raises(DataError, match="in its name; give it another one"):
        read(everything(path))


def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: asked.append(given))
    monkeypatch.chdir(make(tmp_path, "data/0.png"))
    (tmp_path / "broken").symlink_to("nowhere")
    wrong = ["data/typo", "./typo", "typo/", "../typo", "a/b/c", "two words", "what?", "broken"]
    for path in [*wrong, "typo.parquet", Path("typo"), tmp_path / "typo"]:
        with pytest.raises(DataError, match="there is no folder or file"):
            everything(path).setup("fit")
    with pytest.raises(ValueError, match="path must name a folder, a file or a dataset"):
        everything("")
    assert asked == []


def test_a_configuration_of_what_is_here(tmp_path):
    data = Images(make(tmp_path, "0.png"), SHAPE, name="plain_text")
    with pytest.raises(
        DataError, match="is here, and not on the hub, where the name 'plain_text"
    ):
        data.setup("fit")


def test_a_snapshot_of_the_hub(tmp_path):
    """Links to files without a suffix, below a folder whose name starts with a dot."""
    blobs, snapshot = tmp_path / ".cache[1]" / "blobs", tmp_path / ".cache[1]" / "snapshot"
    blobs.mkdir(parents=True)
    (snapshot / "data").mkdir(parents=True)
    make_rows([3, 4]).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").rename(blobs / "0a1b")
    for name in ("data/train-00000-of-00001.parquet", "data/other-00000-of-00001.PARQUET"):
        (snapshot / name).symlink_to(blobs / "0a1b")
    data = everything(snapshot)
    assert read(data) == ([0, 1, 0, 1], [3, 4, 3, 4])
    assert set(data._splits) == {"train", "other"}


# splits and classes of folders


def test_the_order_is_that_of_datasets(tmp_path):
    """So that the images which a seed draws for validation stay the same."""
    names = ["b/10.png", "b/9.PNG", "b-1/0.jpeg", "B/x y.webp", "b/Z.png", "a/é.tif", "a/_.bmp"]
    names += [f"c/{number}.png" for number in range(20)]
    make(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in names))
    patterns = {split: f"{split}/**" for split in ("train", "test")}
    known = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), data_files=patterns)
    data = Images(tmp_path, SHAPE)
    data.setup("fit")
    assert data.class_names == known["train"].features["label"].names
    for split, rows in known.items():
        rows = rows.cast_column("image", datasets.Image(decode=False))
        images = data._splits[split]
        assert [images[i].name for i in range(len(images))] == [
            r["path"] for r in rows["image"]
        ]
        assert images.labels.values.tolist() == list(rows["label"])


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


def test_what_is_no_image_is_left_out(tmp_path, capsys):
    make(tmp_path, "a/0.png", "b/1.png")
    for name in ("a/Thumbs.db", "a/x.fits", "notes.txt", "b/c.zip"):
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "broken.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert read(everything(tmp_path)) == ([0, 1], [0, 1])
    out = capsys.readouterr().out
    for told in (
        "a/Thumbs.db, a/x.fits, b/c.zip and 1 other (of no format that is read)",
        "a/broken.png (a link that leads nowhere)",
        "a/pipe.png (no file)",
        "a/folder.png, empty (without images)",
    ):
        assert told in out


def test_links_are_followed_and_circles_end(tmp_path, capsys):
    make(tmp_path / "store", "dogs/0.png", "dogs/more/1.png")
    make(tmp_path / "data", "cat/2.png", "fox/3.png", "fox/4.png")
    links = {
        "dog": tmp_path / "store" / "dogs",
        "cat/again": tmp_path / "data",
        "cat/itself": ".",
        "cat/itself-too": "itself-too",
        "fox/file.png": tmp_path / "store" / "dogs" / "0.png",
    }
    for name, target in links.items():
        (tmp_path / "data" / name).symlink_to(target)
    (tmp_path / "store" / "dogs" / "up").symlink_to("..")
    data = everything(tmp_path / "data")
    assert read(data) == ([0, 0, 1, 1, 2, 0], [0, 1, 1, 2, 2, 2])
    assert data.class_names == ["cat", "dog", "fox"]
    out = capsys.readouterr().out
    assert "cat/again, cat/itself, dog/up (a link to a folder that it lies in)" in out
    assert "cat/itself-too (a link that leads nowhere)" in out


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


def test_a_split_of_files_can_be_sent_to_a_process(tmp_path):
    data = everything(make(tmp_path, "cat/0.png", "dog/1.png"))
    data.setup("fit")
    images = pickle.loads(pickle.dumps(data._splits["train"]))
    assert images[1].name == str(tmp_path / "dog" / "1.png") and len(images) == 2


# metadata

CSV = "file_name,{}\na.png,{}\nb.png,{}\nc.png,{}\n".format
ALL = [0, 1, 2]
METADATA = {
    "another order": (
        "file_name,label\nb.png,1\na.png,0\n",
        [1, 0],
        [1, 0],
        "left out: c.png (not listed in the metadata)",
    ),
    "json": ('{"file_name": "a.png", "label": 3}\n', [0], [3], "not listed in the metadata"),
    "an empty label": (CSV("label", 1, "", 0), ALL, [1, -1, 0], "a label: 1 of train"),
    "text": (
        CSV("label", *"xyx"),
        ALL,
        [None] * 3,
        "label of metadata.csv (no column of whole",
    ),
    "a name with a space and capitals": (
        CSV(" Label", 1, 0, 1),
        ALL,
        [1, 0, 1],
        "0 (1), 1 (2)",
    ),
    "a class": (CSV("class", 1, 0, 1), ALL, [1, 0, 1], "0 (1), 1 (2)"),
    "two columns": (
        CSV("label,target", "0,1", "1,1", "1,0"),
        ALL,
        [0, 1, 1],
        "left out: target of metadata.csv (another column of labels)",
    ),
    "another name": (
        CSV("category", 0, 1, 1),
        ALL,
        [None] * 3,
        "no labels; left out: category of metadata.csv (for labels, name it label)",
    ),
    "no labels": (CSV("caption", *"xyx"), ALL, [None] * 3, "no labels"),
    "listed again": (
        CSV("text", *"xyx") + "b.png,z\n",
        ALL,
        [None] * 3,
        "left out: b.png (listed again in the metadata)",
    ),
    "json with a byte order mark": (
        '\ufeff{"file_name": "a.png", "label": 3}\n',
        [0],
        [3],
        "1 class: 3 (1)",
    ),
    "csv with a byte order mark": ("\ufeff" + CSV("label", 1, 0, 1), ALL, [1, 0, 1], "0 (1)"),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata(kind, tmp_path, capsys):
    text, greys, labels, line = METADATA[kind]
    make(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / f"metadata.{'jsonl' if '{' in text[:2] else 'csv'}").write_text(text, "utf8")
    assert read(everything(tmp_path)) == (greys, labels)
    assert line in capsys.readouterr().out


def test_names_in_metadata_may_be_composed_in_another_way(tmp_path):
    make(tmp_path, "caf\u00e9.png", "e\u0301/1.png")
    text = "file_name,label\ncafe\u0301.png,2\n\u00e9/1.png,5\n"
    (tmp_path / "metadata.csv").write_text(text, "utf8")
    assert read(everything(tmp_path)) == ([0, 1], [2, 5])


def test_metadata_of_a_split_in_parquet_and_classes_beside_captions(tmp_path):
    make(tmp_path / "a", "train/0.png", "train/1.png", "test/2.png")
    table = pa.table({"file_name": ["1.png", "0.png"], "label": [4, 5]})
    pq.write_table(table, tmp_path / "a" / "train" / "metadata.parquet")
    assert read(everything(tmp_path / "a")) == ([1, 0, 2], [4, 5, None])
    make(tmp_path / "b", "cat/0.png", "dog/1.png")
    (tmp_path / "b" / "metadata.csv").write_text("file_name,text\ndog/1.png,x\ncat/0.png,y\n")
    assert read(everything(tmp_path / "b")) == ([1, 0], [1, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\na.png,0\nd.png,1\n", r"metadata.csv lists d.png, which is no image"),
        ("file_name,label\n../x/a.png,0\n", r"lists ../x/a.png, which is no image"),
        ("name,label\na.png,0\n", "has no column file_name of its images, but name, label"),
        ("file_name;label\na.png;0\n", "but file_name;label; name it so, separate columns by"),
        (
            "file_name,label\na.png,0\na.png,1\n",
            "a.png has two labels in the metadata, 0 and 1",
        ),
        ("", "metadata.csv cannot be read"),
        ("file_name,label\n", "metadata.csv lists no images; list them, or move"),
    ],
)
def test_metadata_that_is_wrong(text, message, tmp_path):
    make(tmp_path / "x", "a.png")
    make(tmp_path / "data", "a.png", "b.png")
    (tmp_path / "data" / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        everything(tmp_path / "data").setup("fit")
    assert str(tmp_path) in str(caught.value)


# columns of tables

AB = datasets.ClassLabel(names=["a", "b"])
NONE = [None] * 3
NO_COLUMN = "no labels; left out: label (no column of whole numbers from 0)"
COLUMNS = {
    "whole numbers": ([2, 0, 1], None, [2, 0, 1], None, "3 classes: 0 (1), 1 (1), 2 (1)"),
    "one missing": ([0, None, 1], None, [0, -1, 1], None, "without a label: 1 of train"),
    "floating point": ([1.0, 0.0, None], None, [1, 0, -1], None, "a label: 1 of train"),
    "half precision": (
        [1.0, 0.0, None],
        datasets.Value("float16"),
        [1, 0, -1],
        None,
        "a label: 1 of train",
    ),
    "truth values": ([True, False, True], None, [1, 0, 1], ["False", "True"], "True (2)"),
    "names, one missing": ([-1, 1, 0], AB, [-1, 1, 0], ["a", "b"], "without a label: 1 of"),
    "one of two signs": ([-1, 1, 1], None, NONE, None, NO_COLUMN),
    "fractions": ([0.5, 1.0, 2.0], None, NONE, None, NO_COLUMN),
    "text": (["a", "b", "a"], None, NONE, None, NO_COLUMN),
    "none": (NONE, datasets.Value("int64"), NONE, None, "3 test images; no labels"),
    "nothing": (NONE, None, NONE, None, "3 test images; no labels"),
    "names, all missing": ([-1] * 3, AB, NONE, None, "3 test images; no labels"),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_of_labels(column, tmp_path, capsys):
    values, kind, labels, names, line = COLUMNS[column]
    make_rows(values, kind).to_parquet(tmp_path / "all.parquet")
    data = everything(tmp_path)
    assert read(data) == ([0, 1, 2], labels)
    assert data.class_names == names
    assert line in capsys.readouterr().out


def test_a_label_beyond_the_classes(tmp_path):
    table = make_rows([0, 1], AB).data.table
    labels = pa.array([0, 5], pa.int64())
    pq.write_table(table.set_column(1, "label", labels), tmp_path / "all.parquet")
    with pytest.raises(DataError, match="image 1 has the label 5, of 2 classes"):
        everything(tmp_path).setup("fit")


def test_columns_by_their_names(tmp_path, capsys):
    table = make_rows([0, 1], AB).data.table
    features = {"mask": datasets.Image(), "image": datasets.Image()}
    features |= {"coarse_label": AB, "fine_label": AB}
    columns = [table["image"][::-1], table["image"], table["label"], table["label"][::-1]]
    columns = [column.combine_chunks().to_pylist() for column in columns]
    rows = dict(zip(features, columns))
    rows = datasets.Dataset.from_dict(rows, datasets.Features(features))
    rows.to_parquet(tmp_path / "all.parquet")
    assert read(everything(tmp_path)) == ([0, 1], [1, 0])
    out = capsys.readouterr().out
    assert "mask (another column of images)" in out
    assert "coarse_label (another column of labels)" in out


@pytest.mark.parametrize(
    "name", ["Label", " label ", "LABELS", "class", "target", "coarse_label"]
)
def test_names_of_columns_of_labels(name, tmp_path):
    make_rows([1, 0, 2], key=name).to_parquet(tmp_path / "all.parquet")
    assert read(everything(tmp_path)) == ([0, 1, 2], [1, 0, 2])


@pytest.mark.parametrize(
    ("first", "second", "labels", "line"),
    [
        (("label", None), ("kind", AB), [1, 0], "left out: label (another column of labels)"),
        (("coarse_label", AB), ("fine_label", AB), [1, 0], "coarse_label (another column of"),
        (
            ("class", None),
            ("label", None),
            [1, 0],
            "left out: class (another column of labels)",
        ),
        (("class_id", None), ("x", None), [None] * 2, "class_id (for labels, name it label)"),
    ],
)
def test_columns_of_labels_that_are_not_read(first, second, labels, line, tmp_path, capsys):
    rows = make_rows([0, 1], key=first[0], kind=first[1])
    rows = rows.add_column(second[0], [1, 0]).cast_column(
        second[0], second[1] or datasets.Value("int64")
    )
    rows.to_parquet(tmp_path / "all.parquet")
    assert read(everything(tmp_path))[1] == labels
    assert line in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [
        ([None, None], [1, 0], [-1, -1, 1, 0]),
        ([1, 0], [None, None], [1, 0, -1, -1]),
        ([1, 0], [1.0, None], [1, 0, 1, -1]),
        ([None, 1], [True, False], None),
    ],
)
def test_types_of_columns_that_can_be_joined(first, second, labels, tmp_path):
    make_rows(first).to_parquet(tmp_path / "a.parquet")
    make_rows(second, start=2).to_parquet(tmp_path / "b.parquet")
    if labels is not None:
        assert read(everything(tmp_path)) == ([0, 1, 2, 3], labels)
        return
    with pytest.raises(DataError, match=r"is of type bool, that of .*a\.parquet int64"):
        everything(tmp_path).setup("fit")


@pytest.mark.parametrize("labels", [["x", "y", "x"], [3, 4, 3]])
def test_dictionary_encoded_columns(labels, tmp_path):
    images = make_rows(labels).data.table["image"].combine_chunks()
    table = pa.table({"image": images, "label": pa.array(labels).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    want = labels if labels[0] == 3 else [None] * 3
    assert read(everything(tmp_path)) == ([0, 1, 2], want)


PIXELS = [[[value] * 8] * 8 for value in range(2)]


@pytest.mark.parametrize(
    "images",
    [
        pa.array(PIXELS),
        pa.array([7, 8]),
        pa.array([{"pixels": b""}] * 2),
        pa.array([[{"bytes": b"", "path": ""}]] * 2),
    ],
)
def test_columns_of_images_that_are_no_files(images, tmp_path):
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"the column image holds no image files but .*; write"):
        everything(tmp_path).setup("fit")


# files of tables


def test_splits_of_tables(tmp_path, capsys):
    (tmp_path / "a" / "data").mkdir(parents=True)
    for count, name in enumerate(
        ["train-00000-of-00002", "train-00001-of-00002", "more-00000-of-00001"]
    ):
        make_rows([count] * 2).to_parquet(tmp_path / "a" / "data" / f"{name}.parquet")
    data = Images(tmp_path / "a", SHAPE, val_split="more", test_split=0.25)
    data.setup("fit")
    assert {split: len(source) for split, source in data.sources.items()} == {
        "test": 1,
        "val": 2,
        "train": 3,
    }
    (tmp_path / "b").mkdir()
    for name in ("Train", "test.1", "extra"):
        make_rows([1]).to_parquet(tmp_path / "b" / f"{name}.parquet")
    capsys.readouterr()
    data = Images(tmp_path / "b", SHAPE, val_split="test")
    data.setup("fit")
    assert capsys.readouterr().out.endswith("left out: extra.parquet (of no split)\n")
    (tmp_path / "b" / "test.1.parquet").rename(tmp_path / "b" / "train_test.parquet")
    with pytest.raises(DataError, match=r"train_test\.parquet names the splits test, train"):
        Images(tmp_path / "b", SHAPE).setup("fit")


def write_damaged(folder):
    make_rows([0, 1] * 20).to_parquet(folder / "b.parquet")
    content = bytearray((folder / "b.parquet").read_bytes())
    content[200:900] = bytes(700)
    (folder / "b.parquet").write_bytes(content)


def write_cut(folder):
    make_rows([0, 1] * 20).save_to_disk(folder / "whole")
    content = next((folder / "whole").glob("*.arrow")).read_bytes()
    (folder / "a.parquet").unlink()
    (folder / "b.arrow").write_bytes(content[: len(content) // 2])


TABLES = {
    "empty": (lambda f: (f / "b.parquet").write_bytes(b""), r"b\.parquet cannot be .*0 bytes"),
    "damaged": (write_damaged, r"b\.parquet cannot be read: "),
    "other columns": (
        lambda f: make_rows([0], key="other").to_parquet(f / "b.parquet"),
        r"b\.parquet has the columns image, other, and .*a\.parquet image, label",
    ),
    "another type": (
        lambda f: make_rows(["x"]).to_parquet(f / "b.parquet"),
        r"the column label of .*b\.parquet is of type string, that of .*a\.parquet int64",
    ),
    "a column twice": (
        lambda f: pq.write_table(
            pa.Table.from_arrays([pa.array([b""]), *2 * [pa.array([0])]], ["image", "x", "x"]),
            f / "a.parquet",
        ),
        r"a\.parquet has two columns x; rename one",
    ),
    "images beside": (lambda f: make(f, "0.png"), r"holds images, such as 0\.png, and tables"),
    "arrow beside": (lambda f: (f / "b.arrow").write_bytes(b""), "both parquet and arrow"),
    "configurations": (
        lambda f: [
            [(f / name).mkdir() for name in "xy"],
            [make_rows([1]).to_parquet(f / name / "a.parquet") for name in "xy"],
            (f / "README.md").write_text("---\nconfigs:\n- config_name: x\n- config_name: y\n"),
        ],
        r"README\.md has the configurations x, y",
    ),
    "no images": (
        lambda f: make_rows([0]).select([]).to_parquet(f / "a.parquet"),
        r"a\.parquet holds no images",
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_are_wrong(kind, tmp_path):
    write, message = TABLES[kind]
    make_rows([0]).to_parquet(tmp_path / "a.parquet")
    write(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        everything(tmp_path).setup("fit")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_folders_of_tables_are_no_classes(tmp_path, capsys):
    for number, name in enumerate(("label=0", "label=1")):
        (tmp_path / name).mkdir()
        make_rows([1], key="x", start=number).to_parquet(tmp_path / name / "a.parquet")
    assert read(everything(tmp_path)) == ([0, 1], [None, None])
    line = "label=0, label=1 (folders of tables are no classes; add a column label)"
    assert line in capsys.readouterr().out


# the line


def test_the_line_is_printed_once_in_the_first_process(tmp_path, capsys):
    counts = {"train": 20, "validation": 3, "test": 6}
    make(tmp_path, *(f"{s}/{'ab'[i % 2]}/{i}.png" for s, n in counts.items() for i in range(n)))
    data = Images(tmp_path, SHAPE, val_split=0.2)
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    assert capsys.readouterr().out == (
        f"{tmp_path}: 16 training, 4 validation and 6 test images; "
        "2 classes: 0 a (13), 1 b (13); "
        "not used: validation (3)\n"
    )
    other = Images(tmp_path, SHAPE)
    other.trainer = SimpleNamespace(is_global_zero=False)
    other.setup("fit")
    assert capsys.readouterr().out == ""


def test_many_classes_are_counted(tmp_path, capsys):
    make(
        tmp_path, *(f"{label:02d}/{i}.png" for label in range(12) for i in range(1 + label % 2))
    )
    read(everything(tmp_path))
    assert "; 12 classes of 1 to 2 images\n" in capsys.readouterr().out


def test_names_of_the_classes_of_cifar(tmp_path):
    names = [f"class {number}" for number in range(10)]
    assert Images(make_cifar(tmp_path / "c")).class_names is None
    (tmp_path / "c" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    assert Images(tmp_path / "c").class_names == names
    (tmp_path / "c" / "batches.meta").write_bytes(pickle.dumps({"label_names": names[:3]}))
    with pytest.raises(DataError, match=r"batches\.meta: it does not name 10 classes"):
        Images(tmp_path / "c").setup("fit")
