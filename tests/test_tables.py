"""Columns of tables: which are images, which are labels."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encode, picture
from image_folders import AB, everything, make_rows, read

from mixer_bijectors.train import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
    with pytest.raises(DataError, match=r"another type than .*a\.parquet: .*label.* bool"):
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


@pytest.mark.parametrize("form", ["folder", "file", "save_to_disk"])
def test_relative_paths_are_those_of_the_table(form, tmp_path, monkeypatch):
    """Other images are where the same paths lead from the working directory."""
    for grey, root in enumerate((tmp_path, tmp_path / "elsewhere")):
        (root / "images").mkdir(parents=True)
        (root / "images" / "a.png").write_bytes(encode(picture(grey, (8, 8), "L")))
    (tmp_path / "elsewhere" / "data").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere" / "data")
    rows = datasets.Dataset.from_dict({"image": ["../images/a.png"]})
    data = tmp_path / "data"
    if form == "save_to_disk":
        rows.save_to_disk(data)
    else:
        data.mkdir()
        pq.write_table(rows.with_format("arrow")[:], data / "all.parquet")
    assert read(everything(data / "all.parquet" if form == "file" else data))[0] == [0]
