"""The command: what it is given, how runs go on, and what it tells when it fails."""

import csv
import errno
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
import yaml
from commands import (
    CONFIGS,
    FLOW,
    QUIET,
    SMALL,
    TINY,
    bits_of_test,
    call,
    command,
    fit,
    start,
    task,
)
from PIL import Image
from safetensors.torch import save_file

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, Digits, Images, RunError, load_checkpoint
from mixer_bijectors.train.io.reasons import reason_of
from mixer_bijectors.train.run_folder import RunFolder


def step_of(folder, version=0):
    path = folder / f"version_{version}" / "checkpoints" / "last.ckpt"
    return load_checkpoint(path)["global_step"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(folder, 2)
    return folder / "version_0"


LABELLED = ["--data", "mixer_bijectors.train.Digits", "--data.init_args.batch_size", "64"]
# Small models in place of the configurations' own.
REDUCED = {
    "MixerFlow": [*TINY[:12]],
    "TarFlow": [
        *("--model.flow", "mixer_bijectors.TarFlow", f"{FLOW}image_shape", "[1, 8, 8]"),
        *(f"{FLOW}patch_size", "4", f"{FLOW}channels", "16", f"{FLOW}num_blocks", "2"),
        *(f"{FLOW}layers_per_block", "1", f"{FLOW}head_dim", "8"),
    ],
}
ALL_CONFIGS = sorted(p for p in Path(str(CONFIGS)).glob("*.yaml") if p.stem != "base")
# One of those that have no callbacks of their own.
FAST = ("tarflow_imagenet64",)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else pytest.mark.slow)
        for path in ALL_CONFIGS
    ],
)
def test_a_run_of_every_configuration_goes_on(path, tmp_path, capsys):
    """With a smaller model and other data, and all else as it is configured."""
    config = yaml.safe_load(path.read_text())
    flow = config["model"]["flow"]
    model = REDUCED["MixerFlow"]
    if flow["class_path"] == "mixer_bijectors.TarFlow":
        classes = 10 if flow["init_args"].get("num_classes") else 0
        model = [*REDUCED["TarFlow"], f"{FLOW}num_classes", classes]
    options = ["fit", "--config", path, *QUIET, *model, *LABELLED, "--ckpt_path", "last"]
    options += ["--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", "-1"]
    options += ["--trainer.limit_val_batches", 2, "--trainer.limit_test_batches", 2]
    call(*options, "--trainer.max_steps", 2)
    assert f"there is no checkpoint in {tmp_path}: the run starts anew" in (
        capsys.readouterr().out
    )
    call(*options, "--trainer.max_steps", 3)
    told = capsys.readouterr().out
    assert re.search(r"the run goes on from \S+last.ckpt, step 2\n", told)
    assert re.findall(r"(\S+) is .* in the run of the checkpoint", told) == [
        "trainer.max_steps"
    ]
    assert step_of(tmp_path) == 3 and not (tmp_path / "version_1").exists()


def test_without_last_a_run_is_a_new_one(run, tmp_path, capsys):
    fit(tmp_path, 1)
    fit(tmp_path, 1)
    assert step_of(tmp_path) == step_of(tmp_path, 1) == 1
    assert "the run" not in capsys.readouterr().out


OTHER_CALLBACKS = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"


@pytest.mark.parametrize(
    "options",
    [
        [OTHER_CALLBACKS, "--trainer.callbacks.monitor", "val/bits_per_dim"],
        ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"],
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                [OTHER_CALLBACKS, "--trainer.callbacks.save_last", "true"],
                ["--trainer.callbacks+=mixer_bijectors.train.LastCheckpoint"],
                ["--trainer.logger", "false"],
            )
        ),
    ],
    ids=lambda options: options[-1],
)
def test_runs_with_callbacks_and_loggers_of_their_own_go_on(options, tmp_path, capsys):
    if options[-1].endswith("CSVLogger"):
        options = [*options, "--trainer.logger.save_dir", tmp_path]
    for steps in (2, 3):
        fit(tmp_path, steps, *options, "--ckpt_path", "last")
    assert re.search(r"goes on from \S+last.ckpt, step 2\n", capsys.readouterr().out)
    newest = max(tmp_path.rglob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert load_checkpoint(newest)["global_step"] == 3


def test_a_run_without_a_last_checkpoint_is_no_new_run(tmp_path):
    fit(tmp_path, 2)
    folder = tmp_path / "version_0" / "checkpoints"
    (folder / "last.ckpt").rename(folder / "best.ckpt")
    told = fit(tmp_path, 3, "--ckpt_path", "last", fails=True)
    assert f"{folder} has no last.ckpt to go on from" in told
    assert f"--ckpt_path {folder}/best.ckpt" in told
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
    # What a process was writing when it was killed is no checkpoint.
    (folder / "best.ckpt").rename(folder / ".last.123.partial.ckpt")
    fit(tmp_path, 3, "--ckpt_path", "last")
    assert step_of(tmp_path, 1) == 3


@pytest.mark.parametrize(
    "place",
    ["lightning_logs/version_0/checkpoints/last.ckpt", "last.ckpt", "checkpoints/best.ckpt"],
)
def test_checkpoints_in_other_places_are_no_reason_to_start_anew(place, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({}, path)
    told = fit(tmp_path, 1, "--ckpt_path", "last", fails=True)
    assert f"there is {path}; name it to go on from it, --ckpt_path {path}, or start" in told
    assert not (tmp_path / "version_0").exists()


def test_last_is_found_where_a_logger_of_the_user_has_its_folder(tmp_path, capsys):
    """Outside of the folder of runs."""
    options = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    options += ["--trainer.logger.save_dir", tmp_path / "logs", "--ckpt_path", "last"]
    for steps in (1, 2):
        fit(tmp_path / "runs", steps, *options)
    told = capsys.readouterr().out
    folder = tmp_path / "logs" / "lightning_logs"
    assert f"there is no checkpoint in {tmp_path}/runs, {folder}: the run starts anew" in told
    assert f"goes on from {folder}/version_0/checkpoints/last.ckpt, step 1" in told


def test_last_is_found_where_a_callback_of_the_user_writes(tmp_path, capsys):
    options = [OTHER_CALLBACKS, "--trainer.callbacks.dirpath", tmp_path / "kept"]
    options += ["--trainer.callbacks.save_last", "true", "--ckpt_path", "last"]
    fit(tmp_path / "one", 1, *options)
    fit(tmp_path / "two", 2, *options)
    assert f"goes on from {tmp_path}/kept/last.ckpt, step 1" in capsys.readouterr().out


def test_weights_alone_are_nothing_to_go_on_from(tmp_path):
    weights = ["--trainer.callbacks.save_weights_only", "true"]
    fit(tmp_path, 1, OTHER_CALLBACKS, *weights, "--trainer.callbacks.filename", "some")
    path = tmp_path / "version_0" / "checkpoints" / "some.ckpt"
    told = fit(tmp_path, 2, "--ckpt_path", path, fails=True)
    assert told.startswith(f"mixer-bijectors: {path} holds weights alone, as save_weights_only")
    task("score", path, tmp_path / "s.csv")


def test_a_damaged_last_checkpoint_is_told_with_another(tmp_path):
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    last.write_bytes(b"")
    told = f"mixer-bijectors: {last} is damaged, or no checkpoint"
    assert fit(tmp_path, 1, "--ckpt_path", "last", fails=True) == told
    torch.save({}, best)
    assert fit(tmp_path, 1, "--ckpt_path", "last", fails=True) == told, (
        "nor does that one serve"
    )
    torch.save({"pytorch-lightning_version": "2.6.0", "optimizer_states": []}, best)
    told += f"; name another, --ckpt_path {best}"
    assert fit(tmp_path, 1, "--ckpt_path", "last", fails=True) == told


@pytest.mark.parametrize("literal", [False, True])
def test_the_home_folder_is_found(literal, tmp_path, monkeypatch):
    """Unless a folder has that very name, as a shell that does not expand `~` may leave."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    if literal:
        (here / "~" / "runs").mkdir(parents=True)
    root = (here / "~" if literal else home) / "runs"
    fit("~/runs", 1)
    checkpoint = "~/runs/version_0/checkpoints/last.ckpt"
    fit("~/runs", 2, "--ckpt_path", checkpoint)
    assert step_of(root) == 2, "in the folder of its run"
    task("sample", checkpoint, tmp_path / "s.npz", "--num_samples", 2)
    assert (here / "~").exists() == literal and any(home.iterdir()) != literal


def test_a_run_that_is_over_says_so(tmp_path, capsys):
    for steps in (2, 1):
        fit(tmp_path, steps, "--ckpt_path", "last")
    assert "step 2, and max_steps is reached" in capsys.readouterr().out


def test_what_differs_from_the_run_of_the_checkpoint_is_told(tmp_path, capsys):
    """And takes effect, for what the optimizer keeps in its state as well."""
    changes = {
        "model.learning_rate": ("0.1", "0.004"),
        "model.weight_decay": ("0.5", "0.0"),
        "model.betas": ("[0.5, 0.9]", "[0.9, 0.999]"),
        "model.warmup_steps": ("7", "50"),
        "model.label_dropout": ("0.25", "0.0"),
        "data.init_args.batch_size": ("128", "256"),
        "seed_everything": ("5", "0"),
        "guard.limit": ("50.0", "100.0"),
        "trainer.gradient_clip_val": ("2.0", "None"),
        "trainer.callbacks.LearningRateMonitor.log_momentum": ("True", "False"),
    }
    monitor = ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    keys = {key: key.replace("LearningRateMonitor.", "") for key in changes}
    options = [part for key, (new, _) in changes.items() for part in (f"--{keys[key]}", new)]
    fit(tmp_path, 1, *monitor)
    capsys.readouterr()
    fit(tmp_path, 2, *monitor, *options, "--ckpt_path", "last")
    told = capsys.readouterr().out
    for key, (new, old) in changes.items():
        assert f"{key} is {new}, and was {old} in the run of the checkpoint" in told
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    group = load_checkpoint(path)["optimizer_states"][0]["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (0.1, 0.5)
    fit(tmp_path, 2, "--ckpt_path", "last", *monitor, *options)
    assert "in the run of the checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("subcommand", ["fit", "test", "validate"])
def test_weights_alone_are_no_checkpoint_of_fit(subcommand, run, tmp_path):
    path = tmp_path / "weights.ckpt"
    weights = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    torch.save({"state_dict": weights}, path)
    root = ("--trainer.default_root_dir", tmp_path)
    told = call(
        *(subcommand, *QUIET, "--config", run / "config.yaml", *root, "--ckpt_path", path),
        fails=True,
    )
    assert f"{path} is no checkpoint of fit, as it holds no pytorch-lightning_version" in told
    assert "\n" not in told


def test_the_first_validation_leaves_a_last_checkpoint(tmp_path):
    """So that no run has its best checkpoint and none to go on from."""
    best = ["--trainer.callbacks.monitor", "val/bits_per_dim"]
    cut = "--trainer.callbacks+=test_cli.CutAtStep"
    with pytest.raises(CutError):
        fit(tmp_path, 9, OTHER_CALLBACKS, *best, cut, "--trainer.callbacks.step", 6)
    assert step_of(tmp_path) == 4, "an epoch is of four batches"


class CutError(Exception):
    """What ends a run at some step."""


class CutAtStep(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise CutError


FAILED_STARTS = {
    "no such device": ["--trainer.accelerator", "gpu", "--trainer.devices", "99"],
    "no such precision": ["--trainer.precision", "bf16-true"],
    "no such checkpoint": ["--ckpt_path", "nope.ckpt"],
    "images of another shape": ["--data", "mixer_bijectors.train.Photos"],
}


@pytest.mark.parametrize("kind", FAILED_STARTS)
@pytest.mark.parametrize("others", [False, True], ids=["new", "beside other files"])
def test_a_failed_start_leaves_no_folder(kind, others, tmp_path):
    root = tmp_path / "runs" / "mine"
    if others:
        (root / "version_3").mkdir(parents=True)
        (tmp_path / "runs" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    fit(root, 2, *FAILED_STARTS[kind], fails=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_fails_after_its_first_step_keeps_its_folder(tmp_path):
    cut = "--trainer.callbacks+=test_cli.CutAtStep"
    with pytest.raises(CutError):
        fit(tmp_path, 9, cut, "--trainer.callbacks.step", 1)
    assert (tmp_path / "version_0" / "config.yaml").is_file()


def test_a_failed_start_keeps_what_others_have_written(tmp_path):
    folder = RunFolder(tmp_path / "runs")
    assert folder.version(None) == 0
    notes = tmp_path / "runs" / "version_0" / "notes.txt"
    notes.touch()
    folder.remove_failed_start()
    assert notes.is_file()
    notes.unlink()
    folder.remove_failed_start()
    assert not (tmp_path / "runs").exists()


def test_options_hold_before_a_config_as_well_as_after(run, tmp_path):
    root = ("--trainer.default_root_dir", tmp_path)
    call("fit", *root, "--trainer.max_steps", 1, "--config", run / "config.yaml")
    assert step_of(tmp_path) == 1, "in place of the two of the config"


def test_the_checkpoint_is_the_one_that_is_named(run, tmp_path):
    """Not one that a config after it names, such as what its run had gone on from."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["ckpt_path"] = str(tmp_path / "other.ckpt")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    checkpoint = run / "checkpoints" / "last.ckpt"
    output = tmp_path / "scores.csv"
    task("score", checkpoint, output, "--config", tmp_path / "other.yaml")
    assert output.exists()


def test_the_config_of_a_run_does_not_name_what_it_went_on_from(tmp_path):
    for steps in (1, 2):
        fit(tmp_path, steps, "--ckpt_path", "last")
    config = yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text())
    assert config["ckpt_path"] is None and config["trainer"]["max_steps"] == 2


def test_configs_go_on_top_of_one_another(run, tmp_path, capsys):
    for name in ("torchrun", "slurm", "sharded"):
        overlay = CONFIGS / "cluster" / f"{name}.yaml"
        configs = ("--config", CONFIGS / "photos.yaml", "--config", overlay)
        call("fit", *configs, "--print_config")
        printed = yaml.safe_load(capsys.readouterr().out)
        want = yaml.safe_load(overlay.read_text())["trainer"]
        assert {key: printed["trainer"][key] for key in want} == want
        assert printed["model"]["flow"]["init_args"]["num_layers"] == 4


def printed(capsys, *options):
    call("fit", *options, "--print_config")
    return yaml.safe_load(capsys.readouterr().out)


def classes_of(config):
    return [one["class_path"].rpartition(".")[2] for one in config["trainer"]["callbacks"]]


def test_a_config_of_your_own_goes_on_top_of_the_base(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    flow = {"class_path": "mixer_bijectors.MixerFlow"}
    config = {
        "trainer": {"callbacks+": [{"class_path": "mixer_bijectors.train.Pictures"}]},
        "model": {"flow": flow},
        "data": {"class_path": "mixer_bijectors.train.Digits"},
    }
    mine.write_text(yaml.safe_dump(config))
    base = printed(capsys, "--config", "base", "--config", mine)
    assert classes_of(base) == ["ModelCheckpoint", "LearningRateMonitor", "Pictures"]
    assert base["seed_everything"] == 0 and base["trainer"]["gradient_clip_val"] == 1.0
    alone = printed(capsys, "--config", mine)
    assert classes_of(alone) == ["Pictures"]
    # A packaged one that comes later does not have the base on top of the user's.
    config["trainer"] = {"gradient_clip_val": 3.0}
    mine.write_text(yaml.safe_dump(config))
    both = printed(capsys, "--config", mine, "--config", "photos")
    assert both["trainer"]["gradient_clip_val"] == 3.0
    assert classes_of(both)[2:] == ["LastCheckpoint", "Pictures"]


# What the former files held, which had all of it in each.
CALLBACKS = {
    "photos": ["LastCheckpoint", "Pictures"],
    "digits": ["LastCheckpoint", "Pictures"],
    "cifar10": ["Pictures", "EMAWeightAveraging"],
}


@pytest.mark.parametrize("name", [*CALLBACKS, "tarflow_afhq256"])
def test_configs_of_the_package_stand_on_their_base(name, capsys):
    data = ["--data", "mixer_bijectors.train.Digits"] if name.startswith("tarflow") else []
    config = printed(capsys, "--config", name, *data)
    assert config["seed_everything"] == config["trainer"]["num_sanity_val_steps"] == 0
    if data:
        assert config["trainer"]["callbacks"] is config["trainer"]["gradient_clip_val"] is None
        return
    assert classes_of(config) == ["ModelCheckpoint", "LearningRateMonitor", *CALLBACKS[name]]
    best = config["trainer"]["callbacks"][0]["init_args"]
    assert (best["monitor"], best["filename"]) == ("val/bits_per_dim", "best")
    assert config["trainer"]["gradient_clip_val"] == 1.0


def test_a_config_that_a_run_has_saved_is_whole(run, capsys):
    """It holds all settings, as those do that were saved before there was a base."""
    saved = yaml.safe_load((run / "config.yaml").read_text())
    again = printed(capsys, "--config", run / "config.yaml")
    assert again["trainer"] == saved["trainer"] and again["model"] == saved["model"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"trainer: {max_steps: [3\nmodel: }\n", "mine.yaml is no YAML: .* line 2"),
        (b"\xff\xfe\x00", "mine.yaml is no YAML: "),
        (b"photos\n", "mine.yaml has no keys, such as model and data"),
    ],
)
def test_a_broken_config_is_told_by_its_name(text, told, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(text)
    sentence = call("fit", "--config", "photos", "--config", tmp_path / "mine.yaml", fails=True)
    assert re.search(f"^mixer-bijectors: the config .*{told}", sentence)
    assert "\n" not in sentence


@pytest.mark.parametrize("name", ["photos", "photos.yaml", CONFIGS / "photos.yaml"])
def test_a_config_of_the_package_is_found_by_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call("fit", "--config", name, "--config", "sharded", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["default_root_dir"] == "runs/photos"
    assert printed["trainer"]["strategy"] == "sharded"


def test_a_config_that_is_not_there_is_told_with_those_that_are():
    told = call("fit", "--config", "fotos", fails=True)
    assert told.startswith("mixer-bijectors: there is no config fotos") and "photos," in told


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
def test_what_is_wrong_with_a_checkpoint_is_told(name, kind, run, tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    without = load_checkpoint(run / "checkpoints" / "last.ckpt")
    del without["config"]
    torch.save(without, tmp_path / "copy.ckpt")
    exported = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, exported, {"config": "model: {}"})
    places = {"RUN": run, "TEXT": tmp_path / "text.ckpt", "COPY": tmp_path / "copy.ckpt"}
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
def test_errors_are_one_sentence(kind, run, tmp_path, monkeypatch):
    arguments, told = REFUSED[kind]
    places = {
        "CONFIG": run / "config.yaml",
        "LAST": run / "checkpoints" / "last.ckpt",
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
def test_what_is_mistyped_is_told_in_one_line(kind, run, tmp_path, capsys):
    arguments, told = MISTYPED[kind]
    places = {
        "CONFIG": run / "config.yaml",
        "LAST": run / "checkpoints" / "last.ckpt",
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


def raised(*errors):
    """The first of some errors, each raised from the next one."""
    try:
        if len(errors) == 1:
            raise errors[0]
        raise errors[0] from raised(*errors[1:])
    except Exception as error:
        return error


def worded_here(cause):
    """An error of the library that has another cause."""
    try:
        DensityEstimation(None, noise=-1.0)
    except ValueError as error:
        error.__cause__ = cause
        return error


DENIED = PermissionError(errno.EACCES, "Permission denied", "photo.png")
FULL = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
CHAINS = {
    "the innermost": (raised(ValueError("parser"), ValueError("cause")), "cause"),
    "a key alone": (raised(ValueError("no such model"), KeyError("a")), "no such model"),
    "an attribute alone": (raised(TypeError("no pair"), AttributeError("int")), "no pair"),
    "nothing": (ValueError(), "ValueError"),
    "a run's": (raised(ValueError("parser"), RunError("why"), KeyError("a")), "why"),
    "a run's, within any": (raised(KeyError("a"), RunError("why")), "why"),
    "a sentence of the library": (
        raised(ValueError("parser"), worded_here(TypeError("not supported"))),
        "DensityEstimation: noise must not be negative, got -1.0",
    ),
    "a file that cannot be read": (DENIED, "photo.png: Permission denied"),
    "a full disk, deep inside": (raised(KeyError("a"), FULL), "the disk is full: last.ckpt"),
    "a failure in a user's code": (raised(ValueError("no data"), RuntimeError("why")), "why"),
    "a package": (ImportError("needs einops"), "needs einops"),
    "a fault of the program": (KeyError("a"), None),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_the_cause_of_an_error_is_told(kind):
    error, told = CHAINS[kind]
    reason = reason_of(error)
    assert reason is None if told is None else reason.startswith(told)


class Faulty(mb.MixerFlow):
    """A model of a user, which the parser does not manage to build."""

    def __init__(self, error: str) -> None:
        raise {"ValueError": ValueError, "RuntimeError": RuntimeError}[error]("why")


def test_the_cause_is_told_of_what_the_parser_builds(tmp_path):
    def build(error):
        model = ("--model.flow", "test_cli.Faulty", f"{FLOW}error", error)
        return call("fit", *model, *LABELLED, "--model.noise", 0, fails=True)

    assert build("ValueError") == "mixer-bijectors: why"
    # A fault of the program is shown with its traceback.
    with pytest.raises(ValueError, match="Does not validate") as caught:
        build("RuntimeError")
    assert str(_cause_of(caught.value)) == "why"


def _cause_of(error):
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error


def test_a_config_is_that_of_the_checkpoints_beside_it(tmp_path):
    fit(tmp_path, 2)
    before = (tmp_path / "version_0" / "config.yaml").read_text()
    told = fit(tmp_path, 3, "--ckpt_path", "last", f"{FLOW}hidden_features", 4, fails=True)
    assert "does not fit the model of the config" in told
    assert (tmp_path / "version_0" / "config.yaml").read_text() == before


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


def test_averaged_weights_are_tested_after_a_fit(tmp_path, capsys):
    average = "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"
    best = ["--trainer.callbacks.monitor", "val/bits_per_dim", "--trainer.callbacks.filename"]
    fit(
        *(tmp_path, 8, OTHER_CALLBACKS, *best, "best", average),
        *("--trainer.callbacks.decay", "0.9", "--trainer.callbacks.use_buffers", "false"),
    )
    told = re.search(r"per dimension (\S+),", capsys.readouterr().out)[1]
    path = tmp_path / "version_0" / "checkpoints" / "best.ckpt"
    saved = load_checkpoint(path)
    assert any(
        not torch.equal(weight, saved["current_model_state"][key])
        for key, weight in saved["state_dict"].items()
    )
    call("test", "--ckpt_path", path, *QUIET)
    assert f"{bits_of_test(capsys.readouterr().out):.3f}" == told


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
