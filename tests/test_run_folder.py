"""How runs go on, and what starts anew, ends and fails leave in a folder."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from commands import (
    CONFIGS,
    FLOW,
    LABELLED,
    QUIET,
    TINY,
    bits_of_test,
    call,
    fit,
    step_of,
    task,
)

from mixer_bijectors.train import load_checkpoint
from mixer_bijectors.train.run_folder import RunFolder

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


def test_without_last_a_run_is_a_new_one(short_run, tmp_path, capsys):
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
    told = fit(tmp_path, 3, "--ckpt_path", "best", fails=True)
    assert "fit goes on from last, or from the path of a checkpoint, such as" in told
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
def test_weights_alone_are_no_checkpoint_of_fit(subcommand, short_run, tmp_path):
    path = tmp_path / "weights.ckpt"
    weights = load_checkpoint(short_run / "checkpoints" / "last.ckpt")["state_dict"]
    torch.save({"state_dict": weights}, path)
    root = ("--trainer.default_root_dir", tmp_path)
    config = ("--config", short_run / "config.yaml")
    told = call(subcommand, *QUIET, *config, *root, "--ckpt_path", path, fails=True)
    assert f"{path} is no checkpoint of fit, as it holds no pytorch-lightning_version" in told
    assert "\n" not in told


def test_the_first_validation_leaves_a_last_checkpoint(tmp_path):
    """So that no run has its best checkpoint and none to go on from."""
    best = ["--trainer.callbacks.monitor", "val/bits_per_dim"]
    cut = "--trainer.callbacks+=test_run_folder.CutAtStep"
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
    cut = "--trainer.callbacks+=test_run_folder.CutAtStep"
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
