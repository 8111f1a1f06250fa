"""The command: what it is given, and what it tells when it fails."""

import csv
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from commands import CONFIGS, FLOW, QUIET, SMALL, TINY, call, command, fit, start, task
from PIL import Image
from safetensors.torch import save_file

import mixer_bijectors as mb
from mixer_bijectors.train import Digits, Images, load_checkpoint


def test_the_version_is_told(capsys):
    call("--version")
    assert capsys.readouterr().out == f"mixer-bijectors {mb.__version__}\n"


def test_a_share_on_the_command_line_is_a_number():
    splits = Images("images", test_split="0.1", val_split="0.2").splits
    assert splits == {"train": "train", "val": 0.2, "test": 0.1}
    with pytest.raises(ValueError, match="test_split must be a name or from 0 to 1"):
        Images("images", test_split="1.5")


TASKS = ("sample", "embed", "probe", "score", "reconstruct", "export", "test", "validate")
CHECKPOINTS = {
    "none": (None, r"which weights\? pass --ckpt_path"),
    "a missing one": ("nope.ckpt", "there is no checkpoint nope.ckpt"),
    "last": ("last", "takes the path of a checkpoint, such as runs/NAME"),
    "a folder": ("RUN", r"is a folder; name a checkpoint in it, such as .*last.ckpt"),
    "text": ("TEXT", "text.ckpt is damaged, or no checkpoint"),
    "an exported one": ("EXPORTED", "is an exported file, which .*load reads; name a checkp"),
    "one without a config": ("COPY", "copy.ckpt holds no configuration, and is not in the"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("name", TASKS)
def test_what_is_wrong_with_a_checkpoint_is_told(name, kind, short_run, tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    without = load_checkpoint(short_run / "checkpoints" / "last.ckpt")
    del without["config"]
    torch.save(without, tmp_path / "copy.ckpt")
    exported = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, exported, {"config": "model: {}"})
    places = {"RUN": short_run, "TEXT": tmp_path / "text.ckpt", "COPY": tmp_path / "copy.ckpt"}
    places["EXPORTED"] = exported
    given, told = CHECKPOINTS[kind]
    path = () if given is None else ("--ckpt_path", places.get(given, given))
    assert re.search(f"^mixer-bijectors: .*{told}", call(name, *path, fails=True))


FIT = ["fit", "--config", "CONFIG", "--trainer.default_root_dir", "ROOT"]
LAST = ["--ckpt_path", "LAST", "--output"]
REFUSED = {
    "a patch that does not fit": (
        [*FIT, f"{FLOW}patch_size", "5"],
        "not divisible by patch height 5",
    ),
    "no images in a batch": (
        [*FIT, "--data.init_args.batch_size", "0"],
        "batch_size must be at least 1",
    ),
    "images of another shape": (
        [*FIT, "--data", "mixer_bijectors.train.Photos"],
        r"expected shape \(batch, 1, 8, 8\)",
    ),
    "a missing checkpoint": (
        [*FIT, "--ckpt_path", "nope.ckpt"],
        "there is no checkpoint nope.ckpt",
    ),
    "the weights of another model": (
        [*FIT, "--ckpt_path", "LAST", f"{FLOW}hidden_features", "4"],
        "does not fit the model of the config: size mismatch",
    ),
    "half the precision": (
        [*FIT, "--trainer.precision", "bf16-true"],
        "precision bf16-true .* use bf16-mixed",
    ),
    "half the precision in float16": (
        [*FIT, "--trainer.precision", "16-true"],
        "precision 16-true .* use 16-mixed",
    ),
    "half the precision in a task": (
        ["sample", *LAST, "s.npz", "--trainer.precision", "16-true"],
        "precision 16-true .* use 16-mixed",
    ),
    "a run that cannot be": (
        ["fit", "--config", "CONFIG", "--trainer.default_root_dir", "/proc/runs"],
        "/proc/runs cannot be written",
    ),
    "no data": (
        [
            *(*FIT, "--data", "mixer_bijectors.train.Images"),
            *("--data.init_args.path", "./none", "--data.init_args.image_shape", "[1, 8, 8]"),
        ],
        "there is no folder or file ./none",
    ),
    "no such split": (["score", *LAST, "s.csv", "--split", "exam"], "no split 'exam'"),
    "another model": (
        ["embed", *LAST, "e.npz", f"{FLOW}hidden_features", "4"],
        "do not fit the model of the config",
    ),
    "a wrong suffix": (
        ["score", *LAST, "scores.txt"],
        "output must be a name with .csv or .parquet",
    ),
    "no name": (["sample", *LAST, ".npz"], "output must be a name with .npz"),
    "classes of no classes": (["sample", *LAST, "s.npz", "--classes", "[1]"], "leave out"),
    "guidance of a MixerFlow": (
        ["sample", *LAST, "s.npz", "--guidance", "1"],
        "the model has no guidance",
    ),
    "no samples": (
        ["sample", *LAST, "s.npz", "--num_samples", "0"],
        "must be at least 1, got 0",
    ),
    "fewer than none": (
        ["sample", *LAST, "s.npz", "--num_samples", "-1"],
        "must be at least 1, got -1",
    ),
    "no samples at once": (
        ["sample", *LAST, "s.npz", "--batch_size", "0"],
        "sample: batch_size must be at least 1",
    ),
    "two temperatures": (
        ["sample", *LAST, "s.npz", "--options", '{"temperature": 2.0}'],
        "pass --temperature",
    ),
    "no reconstructions": (
        ["reconstruct", *LAST, "r.npz", "--num_images", "0"],
        "num_images must be at least 1",
    ),
    "an output that cannot be": (["sample", *LAST, "/proc/s.npz"], "/proc cannot be written"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_errors_are_one_sentence(kind, short_run, tmp_path, monkeypatch):
    arguments, told = REFUSED[kind]
    places = {
        "CONFIG": short_run / "config.yaml",
        "LAST": short_run / "checkpoints" / "last.ckpt",
        "ROOT": tmp_path,
    }
    monkeypatch.chdir(tmp_path)
    sentence = call(*(places.get(a, a) for a in arguments), fails=True)
    assert re.search(f"^mixer-bijectors: .*{told}", sentence) and "\n" not in sentence
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob("*.npz"))


SAMPLE = ["sample", "--ckpt_path", "LAST"]
MISTYPED = {
    "a name for a number": (
        [*SAMPLE, "--num_samples", "many"],
        "sample: num_samples must be of type int, got many$",
    ),
    "classes of a model without": (
        [*SAMPLE, "--classes", "n01"],
        "the model is not class-conditional; leave out classes$",
    ),
    "an option": (
        [*SAMPLE, "--temprature", "2"],
        r"sample: there is no option --temprature; did you mean --temperature\?$",
    ),
    "an option of the model": (
        [*FIT, "--learning_rate", "2"],
        r"there is no option --learning_rate; did you mean --model.learning_rate\?$",
    ),
    "a key": (
        [*FIT, "--config", "{trainer: {max_step: 3}}\n"],
        r"unknown key trainer.max_step; did you mean trainer.max_steps\?$",
    ),
    "an argument of a class": (
        [*FIT, f"{FLOW}num_layer", "3"],
        r"MixerFlow has no option num_layer; did you mean num_layers\?$",
    ),
    "a class": (
        [*FIT, "--trainer.callbacks+=mixer_bijectors.train.Pictres"],
        r"there is no Pictres in mixer_bijectors.train; did you mean Pictures\?$",
    ),
    "a value": (
        [*FIT, "--model.learning_rate", "x"],
        "fit: model.learning_rate must be of type float, got x$",
    ),
    "a value of a class": (
        [*FIT, f"{FLOW}num_layers", "x"],
        "model.flow.num_layers must be of type int, got x$",
    ),
    "a command": (["smaple"], r"there is no command smaple; did you mean sample\?$"),
    "a checkpoint without a name": (
        ["fit", "--ckpt_path", "--config", "photos"],
        "fit: --ckpt_path needs a value$",
    ),
    "a checkpoint with an empty name": (
        ["fit", "--config", "photos", "--ckpt_path", ""],
        "fit: --ckpt_path needs a value$",
    ),
    "a config without a name": (["fit", "--config"], "fit: --config/-c needs a value$"),
    "no model": (["fit"], "there is no fit.model.flow, fit.data; name a config"),
}


@pytest.mark.parametrize("kind", MISTYPED)
def test_what_is_mistyped_is_told_in_one_line(kind, short_run, tmp_path, capsys):
    arguments, told = MISTYPED[kind]
    places = {
        "CONFIG": short_run / "config.yaml",
        "LAST": short_run / "checkpoints" / "last.ckpt",
        "ROOT": tmp_path,
    }
    sentence = call(*(places.get(a, a) for a in arguments), fails=True)
    assert re.search(f"^mixer-bijectors: .*{told}", sentence) and "\n" not in sentence
    assert "usage" not in capsys.readouterr().err


def test_classes_that_would_be_left_out(tmp_path):
    fit(tmp_path, 1, f"{FLOW}num_classes", 10)
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    for classes, number in (("[3, 7]", 1), ("[]", 4)):
        told = task(
            *("sample", path, tmp_path / "s.npz", "--classes", classes),
            *("--num_samples", number),
            fails=True,
        )
        assert f"must name from 1 to num_samples={number} classes" in told


def test_plugins_of_the_config_are_used(tmp_path):
    plugin = "lightning.pytorch.plugins.environments.LightningEnvironment"
    fit(tmp_path, 1, f"--trainer.plugins+={plugin}")
    fit(tmp_path, 1, "--trainer.plugins+=mixer_bijectors.train.AtomicCheckpointIO")


class Others(L.LightningDataModule):
    """A data module of a user, without images to test on."""

    def train_dataloader(self):
        x = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
        return torch.utils.data.DataLoader(x, batch_size=4)

    val_dataloader = train_dataloader


def test_other_data_modules_serve(tmp_path, capsys):
    root = ("--trainer.default_root_dir", tmp_path, "--trainer.max_steps", 2)
    call("fit", *QUIET, *TINY[:12], "--data", "test_cli.Others", *root)
    assert "checkpoints, logs and pictures are in" in capsys.readouterr().out


# From here on in processes of their own, or on larger data.


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The checkpoint of a short run on photographs."""
    folder = tmp_path_factory.mktemp("photos")
    root = ("--trainer.default_root_dir", folder, "--trainer.max_steps", 2)
    call("fit", "--config", CONFIGS / "photos.yaml", *SMALL, *root)
    return folder / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_the_command_tells_errors_without_a_traceback(photos, tmp_path):
    done = command("score", "--ckpt_path", photos, "--output", "scores.txt", fails=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mixer-bijectors: output must be a name with .csv")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_samples_do_not_depend_on_the_number_of_processes(strategy, photos, tmp_path):
    options = ("--num_samples", 11, "--batch_size", 3, "--temperature", 0.7, "--seed", 0)
    task("sample", photos, tmp_path / "one.npz", *options)
    command(
        *("sample", "--ckpt_path", photos, "--output", tmp_path / "two.npz", *options, *QUIET),
        *("--trainer.devices", 2, "--trainer.strategy", strategy),
    )
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert np.array_equal(one["images"], two["images"])
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz"] * 2 + [".png"] * 2


@pytest.mark.slow
def test_scores_go_on_where_they_were_killed(photos, tmp_path):
    output = tmp_path / "killed.csv"
    line, environment = start(
        *("score", "--ckpt_path", photos, "--output", output, *QUIET),
        *("--data.init_args.batch_size", 1),
    )
    process = subprocess.Popen(line, env=environment, start_new_session=True)
    parts = tmp_path / "killed.csv.parts" / "test"
    while process.poll() is None and len(list(parts.glob("[0-9]*.npz"))) < 5:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = sorted(parts.glob("[0-9]*.npz"))
    assert kept and not output.exists()
    arrays = dict(np.load(kept[0]))
    np.savez(kept[0], **{**arrays, "bits_per_dim": arrays["bits_per_dim"] * 0 - 1.0})
    task("score", photos, output, "--data.init_args.batch_size", 1)
    task("score", photos, tmp_path / "whole.csv")
    bits = []
    for name in ("killed.csv", "whole.csv"):
        with (tmp_path / name).open(newline="") as file:
            bits.append([float(row["bits_per_dim"]) for row in csv.DictReader(file)])
    assert bits[0][0] == -1, "what was there is not computed again"
    assert bits[0][1:] == pytest.approx(bits[1][1:], abs=1e-4)
    assert not parts.parent.exists()


@pytest.mark.slow
def test_a_conditional_model_tells_anomalies_without_labels(tmp_path):
    root = ("--trainer.default_root_dir", tmp_path / "run", "--trainer.max_steps", 2)
    call("fit", "--config", CONFIGS / "digits.yaml", *QUIET, *root)
    checkpoint = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    images = Digits.splits()["test"].images[:20, 0].numpy()
    folders = [tmp_path / "flat", tmp_path / "classes"]
    for index, image in enumerate(images):
        for folder in (folders[0], folders[1] / "ab"[index % 2]):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:02d}.png")
    bits = []
    for folder in folders:
        output = tmp_path / f"{folder.name}.csv"
        task("score", checkpoint, output, "--anomalies", folder)
        with output.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["set"] == "anomalies"]
        rows.sort(key=lambda row: Path(row["image"]).name)
        bits.append([float(row["bits_per_dim"]) for row in rows])
    # The noise of an image depends on its place in the folder.
    assert np.allclose(bits[0], bits[1], atol=0.5) and len(bits[0]) == 20


@pytest.mark.slow
def test_a_classifier_and_a_probe(tmp_path, capsys):
    root = ("--trainer.default_root_dir", tmp_path, "--trainer.max_steps", 55)
    often = ("--trainer.check_val_every_n_epoch", 1)
    call("fit", "--config", CONFIGS / "mnist5k.yaml", *QUIET, *root, *often)
    with (tmp_path / "version_0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {key: value for row in rows for key, value in row.items() if value}
    assert float(last["test/accuracy"]) > 0.6
    assert 0 <= float(last["val/calibration_error"]) < 0.5
    assert float(last["test/bits_per_dim"]) < 6
    checkpoint = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    task("probe", checkpoint, tmp_path / "probe.npz")
    assert float(re.search(r"linear probe (\S+)", capsys.readouterr().out)[1]) > 0.7
