"""Predictions that go on where a task was cut off, and only those of the same images."""

import numpy as np
import pytest
import torch
from commands import FLOW, task
from PIL import Image
from tiny_runs import Cut, make_flow, make_trainer, table, write_images

from mixer_bijectors.train import DensityEstimation, ImageDataModule, Images
from mixer_bijectors.train.data.batches import TensorSource
from mixer_bijectors.train.tasks.output import Output
from mixer_bijectors.train.tasks.prediction import BatchWriter

OTHERS = {
    "another model, whose weights are of the same shapes": (f"{FLOW}patch_size", "[2, 8]"),
    "other data": ("--data.init_args.permute_seed", 3),
    "another seed": ("--seed_everything", 3),
    "another precision": ("--trainer.precision", "64-true"),
}


@pytest.mark.parametrize(
    "kind",
    [next(iter(OTHERS)), *(pytest.param(k, marks=pytest.mark.slow) for k in [*OTHERS][1:])],
)
def test_a_task_goes_on_but_not_with_results_of(kind, run, tmp_path, monkeypatch):
    parts, output = tmp_path / "scores.csv.parts" / "test", tmp_path / "scores.csv"

    def cut(*_):
        raise Cut

    monkeypatch.setattr(BatchWriter, "read", cut)
    for options in (OTHERS[kind], ()):
        with pytest.raises(Cut):
            task("score", run, output, *options)
    monkeypatch.undo()
    first = dict(np.load(parts / "000000000.npz"))
    np.savez(parts / "000000000.npz", **{**first, "bits_per_dim": first["bits_per_dim"] * 0})
    task("score", run, output)
    resumed = [float(row["bits_per_dim"]) for row in table(output)]
    assert not any(resumed[:256]), "what was there is not computed again"
    task("score", run, tmp_path / "whole.csv")
    whole = [float(row["bits_per_dim"]) for row in table(tmp_path / "whole.csv")]
    assert resumed[256:] == whole[256:] and not parts.parent.exists()


class Listed(ImageDataModule):
    """Grey images of a folder, of a user's own reading."""

    def __init__(self, folder):
        super().__init__(2)
        self.folder = folder

    def setup(self, stage):
        files = sorted(self.folder.glob("*.png"))
        pixels = [torch.from_numpy(np.array(Image.open(path))) for path in files]
        source = _Named(torch.stack(pixels)[:, None], files)
        self.sources = {"test": source}


class _Named(TensorSource):
    """Images whose pixels are asked for by their file."""

    def __init__(self, images, files):
        super().__init__(images)
        self.files = files
        self.read = lambda index, rng: (images[index], None)
        del self.images  # so that files alone tell them from others

    def __len__(self):
        return len(self.files)

    def name(self, index):
        return self.files[index].name


def leave_parts(folder, output, monkeypatch, run, make):
    """Score images, with parts that stay as if the process had been killed at the end."""
    with monkeypatch.context() as patch:
        patch.setattr(Output, "__exit__", lambda *_: None)
        options = {"ckpt_path": str(run), "output": str(output), "overwrite": True}
        make_trainer().score(DensityEstimation(make_flow()), make(folder), **options)
    return [row["bits_per_dim"] for row in table(output)]


def read_folder(folder):
    return Images(folder, (1, 8, 8), batch_size=2, test_split="all")


def read_relative(folder):
    return Images("./imgs", (1, 8, 8), batch_size=2, test_split="all")


@pytest.mark.parametrize("change", ["other files", "another folder", "another working folder"])
@pytest.mark.parametrize("make", [read_folder, Listed])
def test_parts_of_other_images_are_not_used(run, tmp_path, monkeypatch, change, make):
    first, second = tmp_path / "1" / "imgs", tmp_path / "2" / "imgs"
    if change == "other files":
        second = first
    elif change == "another working folder" and make is read_folder:
        make = read_relative
    wanted = leave_parts(
        write_images(second, 1),
        tmp_path / "want.csv",
        monkeypatch,
        run,
        read_folder if make is read_relative else make,
    )
    write_images(first, 0)
    monkeypatch.chdir(first.parent)
    left = leave_parts(first, tmp_path / "s.csv", monkeypatch, run, make)
    assert (tmp_path / "s.csv.parts").is_dir() and left != wanted
    write_images(second, 1)
    monkeypatch.chdir(second.parent)
    assert leave_parts(second, tmp_path / "s.csv", monkeypatch, run, make) == wanted


def test_parts_of_the_same_images_are_used(run, tmp_path, monkeypatch):
    folder, output = write_images(tmp_path / "imgs", 0), tmp_path / "s.csv"
    leave_parts(folder, output, monkeypatch, run, read_folder)
    part = tmp_path / "s.csv.parts" / "test" / "000000001.npz"
    arrays = dict(np.load(part))
    np.savez(part, **arrays | {"bits_per_dim": arrays["bits_per_dim"] * 0 - 1})
    bits = leave_parts(folder, output, monkeypatch, run, read_folder)
    assert [float(b) == -1 for b in bits] == [False, False, True, True, False]
