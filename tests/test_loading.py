"""Which folder, file or dataset a path means."""

import os
from pathlib import Path

import datasets
import pytest
from image_folders import SHAPE, everything, make, make_rows, read

from mixer_bijectors.train import DataError, Images
from mixer_bijectors.train.tasks.score import images_like

pytestmark = pytest.mark.usefixtures("datasets_cache")


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
