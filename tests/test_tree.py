"""The files of a folder, in order, and those that are left out."""

import os

import datasets
import pytest
from image_folders import SHAPE, everything, make, read

from mixer_bijectors.train import Images

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
