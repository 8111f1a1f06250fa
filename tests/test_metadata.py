"""Files of metadata beside images."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import everything, make, read

from mixer_bijectors.train import DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
    "files of masks beside": (
        "mask_file_name,file_name,label\nb.png,a.png,0\na.png,b.png,1\n",
        [0, 1],
        [0, 1],
        "not listed in the metadata",
    ),
    "a column of splits": (
        CSV("split,label", "train,0", "test,1", "train,0"),
        ALL,
        [0, 1, 0],
        "left out: split of metadata.csv (splits are folders or files)",
    ),
    "listed again without a label": (
        CSV("label", 1, "", 0) + "b.png,2\na.png,\n",
        ALL,
        [1, 2, 0],
        "left out: b.png, a.png (listed again in the metadata)",
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


def test_paths_in_metadata_may_be_whole_or_start_with_a_dot(tmp_path):
    make(tmp_path, "a.png", "x/b.png")
    text = f"file_name,label\n{tmp_path}/a.png,2\n./x/b.png,5\n"
    (tmp_path / "metadata.csv").write_text(text)
    assert read(everything(tmp_path)) == ([0, 1], [2, 5])


def test_names_in_the_index_of_a_parquet_file(tmp_path):
    make(tmp_path, "a.png", "b.png")
    table = pd.DataFrame({"file_name": ["b.png", "a.png"], "label": [3, 1]})
    table.set_index("file_name").to_parquet(tmp_path / "metadata.parquet")
    assert read(everything(tmp_path)) == ([1, 0], [3, 1])


def test_labels_in_one_of_two_files_of_metadata(tmp_path):
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,1\nb.png,0\n")
    captions = '{"file_name": "b.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}\n'
    (tmp_path / "metadata.jsonl").write_text(captions)
    assert read(everything(tmp_path)) == ([0, 1], [1, 0])


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
        ("file_name,label\na.png,0\n,1\n", "metadata.csv names no file in its row 2; give it"),
        (
            "file_name,label,label\na.png,0,1\n",
            "metadata.csv cannot be read: two columns are label; rename one",
        ),
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


def test_a_list_in_place_of_lines(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('[{"file_name": "a.png"}]')
    with pytest.raises(DataError, match="name it so, write one object a line, or move"):
        everything(tmp_path).setup("fit")
