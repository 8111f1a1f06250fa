"""Parquet and arrow files: their splits, and what is wrong with them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import SHAPE, everything, make, make_rows, read

from mixer_bijectors.train import DataError, Images

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
        r"b\.parquet has a column of another type than .*a\.parquet: .*label.* string",
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
