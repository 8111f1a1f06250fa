"""Any number of processes does what one does."""

import csv
import re

import pytest
import torch
from commands import CONFIGS, QUIET, SMALL, call, command

from mixer_bijectors.train import load_checkpoint

pytestmark = pytest.mark.slow


def fit(folder, processes, strategy, steps=20, precision="64-true", *options):
    """A run in processes of its own, whose batches are of 12 images in all."""
    options = ["--trainer.devices", processes, "--trainer.strategy", strategy, *options]
    options += ["--trainer.max_steps", steps, "--trainer.precision", precision]
    options += [
        "--trainer.log_every_n_steps",
        1,
        "--data.init_args.batch_size",
        12 // processes,
    ]
    options += ["--data.init_args.batches_per_epoch", 8 * processes]
    options += ["--trainer.limit_val_batches", 3, "--trainer.limit_test_batches", 3]
    root = ("--trainer.default_root_dir", folder)
    command("fit", "--config", CONFIGS / "photos.yaml", *root, *SMALL, *options)
    with (folder / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/bits_per_dim"]]
    state = load_checkpoint(folder / "version_0" / "checkpoints" / "last.ckpt")
    return {int(r["step"]): float(r["train/bits_per_dim"]) for r in rows}, state


@pytest.fixture(scope="module", params=["64-true", "32-true"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def alone(tmp_path_factory, precision):
    return fit(tmp_path_factory.mktemp("alone"), 1, "auto", precision=precision)


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_processes_follow_the_curve_of_one(alone, precision, strategy, tmp_path):
    losses, state = alone
    theirs, their_state = fit(tmp_path, 2, strategy, precision=precision)
    assert len(losses) == 20 and theirs.keys() == losses.keys()
    # The first step of Adam turns rounding into steps of the learning rate where a gradient is
    # next to zero, so that single precision agrees to 1e-5 of the loss, double to much less.
    tolerance = {"rel": 1e-5} if precision == "32-true" else {"abs": 1e-9}
    assert theirs == pytest.approx(losses, **tolerance)
    if precision == "64-true":
        for name, value in state["state_dict"].items():
            torch.testing.assert_close(their_state["state_dict"][name], value, msg=name)


def test_a_sharded_run_is_saved_and_resumed(tmp_path):
    keep = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
    options = [keep, "--trainer.callbacks.every_n_train_steps", 5]
    options += ["--trainer.callbacks.save_top_k", -1, "--trainer.callbacks.filename", "{step}"]
    _, whole = fit(tmp_path / "whole", 2, "sharded", 14, "64-true", *options)
    path = tmp_path / "whole" / "version_0" / "checkpoints" / "step=5.ckpt"
    assert load_checkpoint(path)["global_step"] == 5
    _, resumed = fit(tmp_path / "part", 2, "sharded", 14, "64-true", "--ckpt_path", path)
    assert resumed["global_step"] == 14
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, msg=name)


def table_of_test(folder, processes, batch_size, capsys):
    """What the test of a run prints."""
    arguments = ["test", "--ckpt_path", folder / "version_0" / "checkpoints" / "last.ckpt"]
    arguments += [*QUIET, "--data.init_args.batch_size", batch_size]
    arguments += ["--trainer.limit_test_batches", "1.0"]
    if processes > 1:
        ddp = ("--trainer.devices", processes, "--trainer.strategy", "ddp")
        return command(*arguments, *ddp).stdout
    call(*arguments)
    return capsys.readouterr().out


def fit_briefly(config, folder):
    root = ("--trainer.default_root_dir", folder, "--trainer.max_steps", 2)
    untested = ("--trainer.limit_test_batches", 0, "--trainer.limit_val_batches", 0)
    call("fit", "--config", CONFIGS / config, *QUIET, *root, *untested)


def test_bits_per_dim_do_not_depend_on_the_number_of_processes(tmp_path, capsys):
    """359 images in 23 batches, which neither two nor three processes share evenly."""
    fit_briefly("digits.yaml", tmp_path)
    seen = set()
    for processes in (1, 2, 3):
        table = table_of_test(tmp_path, processes, 16, capsys)
        seen.add(re.search(r"test/bits_per_dim[\s│]+(\S+)", table)[1])
    assert len(seen) == 1, seen
    assert len(seen.pop()) > 12, "to the last digit"


def test_a_classifier_is_tested_where_a_process_has_nothing_to_do(tmp_path, capsys):
    """All images are in two batches, which leave the third process without one."""
    fit_briefly("mnist5k.yaml", tmp_path)
    names = "accuracy|bits_per_dim|calibration_error"
    seen = {
        tuple(
            re.findall(
                rf"test/(?:{names})[\s│]+(\S+)", table_of_test(tmp_path, processes, 500, capsys)
            )
        )
        for processes in (1, 3)
    }
    assert len(seen) == 1 and len(seen.pop()) == 3, seen
