"""Trained models that are loaded from a run or a file."""

import shutil

import numpy as np
import pytest
import torch
from commands import FLOW, TINY, task
from PIL import Image
from tiny_runs import fit, make_flow

from mixer_bijectors.train import DensityEstimation, Digits, RunError, load, load_checkpoint


def test_its_picture_fits_on_a_screen(run):
    picture = repr(load(run))
    assert "MixerFlow" in picture and str(run) in picture
    assert len(picture.splitlines()) < 40


@pytest.mark.parametrize("form", ["run", "all runs", "checkpoint", "exported"])
def test_a_trained_run_loads_in_one_line(form, run, model, tmp_path):
    """From its folder, or from a file alone wherever it lies."""
    path = {"run": run.parents[1], "all runs": run.parents[2]}.get(form)
    if form == "checkpoint":
        path = shutil.copy(run, tmp_path / "alone.ckpt")
    elif form == "exported":
        path = tmp_path / "model.safetensors"
    trained = load(path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[key])
    assert not trained.model.training and trained.classes is None
    assert trained.data["class_path"] == "mixer_bijectors.train.Digits"
    assert trained.datamodule(batch_size=3).batch_size == 3
    assert trained.config["trainer"]["max_steps"] == 6


def test_a_checkpoint_alone_serves_the_command_and_lightning(run, model, tmp_path):
    path = shutil.copy(run, tmp_path / "alone.ckpt")
    assert isinstance(torch.load(path, weights_only=True)["config"], str)
    task("sample", path, tmp_path / "s.npz", "--num_samples", 2)
    assert np.load(tmp_path / "s.npz")["images"].shape == (2, 1, 8, 8)
    for options in ({}, {"flow": make_flow()}):
        module = DensityEstimation.load_from_checkpoint(path, learning_rate=0.5, **options)
        assert module.learning_rate == 0.5
        assert torch.equal(module.flow.q0.loc, model.q0.loc)


def test_a_run_knows_its_classes_by_name(tmp_path):
    for index, image in enumerate(Digits.splits()["test"].images[:20, 0].numpy()):
        folder = tmp_path / "data" / ("train", "val", "test")[index % 3] / "ba"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    data = ("--data", "mixer_bijectors.train.Images", "--data.init_args.path")
    options = (*data, tmp_path / "data", "--data.init_args.image_shape", "[1, 8, 8]")
    splits = ("--data.init_args.val_split", "validation", "--data.init_args.batch_size", 3)
    path = fit(tmp_path / "runs", *TINY[:12], f"{FLOW}num_classes", 2, *options, *splits)
    trained = load(path)
    assert trained.classes == ("a", "b") and trained.label("b") == 1
    task("export", path, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").classes == ("a", "b")
    with pytest.raises(RunError, match="has no class 'c'"):
        trained.label("c")


def test_what_cannot_be_loaded_is_told(run, tmp_path):
    bare = load_checkpoint(run)
    del bare["config"]
    torch.save(bare, tmp_path / "bare.ckpt")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty").mkdir()
    for name, told in {
        "bare.ckpt": "holds no configuration",
        "text.safetensors": "is damaged, or no safetensors file",
        "empty": "there is no checkpoint in",
        "none": "there is no run or checkpoint",
    }.items():
        with pytest.raises(RunError, match=told):
            load(tmp_path / name)
