"""The help of the command, and what a run prints."""

import re
import warnings

import pytest
from commands import CONFIGS, TINY, call, command
from lightning.pytorch.utilities import rank_zero_info
from test_cli import fit

from mixer_bijectors.train.next_steps import next_steps
from mixer_bijectors.train.quiet import silence
from mixer_bijectors.train.tasks.flow_trainer import FlowTrainer

COMMANDS = ["fit", "validate", "test", *FlowTrainer.tasks()]


def printed(capsys, *arguments):
    call(*arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_on_a_screen_or_two(name, capsys):
    text = printed(capsys, name, "--help")
    lines = text.splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 80
    assert (
        lines[0] == f"usage: {lines[-1].split(': ')[1].removesuffix(' --help-all')} [options]"
    )
    assert lines[0].endswith(f"{name} [options]")
    # The task's own options come first.
    own, shared = text.index("\noptions:"), text.index("\nmodel, data and devices:")
    assert own < text.index("--ckpt_path CKPT_PATH") < shared < text.index("--trainer.devices")
    assert "--trainer.enable_autolog_hparams" not in text and "--optimizer" not in text


def test_all_options_are_in_the_help_of_all(capsys):
    short, whole = (printed(capsys, "sample", option) for option in ("--help", "--help-all"))
    assert len(whole.splitlines()) > 300
    options, all_options = (
        set(re.findall(r"^  (?:-. (?:CONFIG)?, )?(--[\w.-]+)", text, re.MULTILINE))
        for text in (short, whole)
    )
    assert {"--num_samples", "--guidance", "--data"} <= options <= all_options
    assert "--trainer.enable_autolog_hparams" in whole


def test_the_help_says_what_the_command_does(capsys):
    text = printed(capsys, "--help")
    assert "COMMAND [options]\n\nTrain normalizing flows on images" in text
    for example in ("fit --config photos", "sample --ckpt_path runs/photos/version_0"):
        assert f"\n  mixer-bijectors {example}" in text
    assert all(re.search(rf"\n  {name}\s+[A-Z]", text) for name in COMMANDS)
    assert "Lightning" not in text and len(text.splitlines()) < 80
    assert (CONFIGS / "photos.yaml").is_file()


UNWANTED = [
    *("litlogger", "Tip", "available:", "Seed set", "Tensor Cores", "num_workers", "workers"),
    *("was configured so", "Restoring", "Loaded model", "stopped:", "LeafSpec", "hparams"),
    *("log_every_n_steps", "Modules in train mode", "Be aware", "dirpath has changed"),
]


def test_a_run_prints_its_own_lines_alone(tmp_path):
    """In a process of its own, whose standard error Lightning writes its messages to."""
    options = ["--trainer.accelerator", "cpu", "--trainer.max_steps", 4]
    options += ["--trainer.default_root_dir", tmp_path, "--trainer.limit_val_batches", "1.0"]
    done = command("fit", *TINY, *options)
    assert not [word for word in UNWANTED if word in done.stdout + done.stderr]
    assert not done.stderr.strip()
    bars = re.sub("[^\r\n]*\r", "", done.stdout)  # what is left on the screen of each line
    assert "Epoch 0: 100%" in bars and "v_num" not in bars
    assert "training a MixerFlow of " in bars
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert f"mixer-bijectors sample --ckpt_path {last}\n" in bars


def test_what_is_not_named_is_still_told(caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence()
        rank_zero_info("GPU available: False, used: False")
        rank_zero_info("the loss is high")
        warnings.warn("Checkpoint directory runs exists and is not empty", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)
    assert [str(one.message) for one in caught] == ["another warning"]
    assert "the loss is high" in caplog.text and "available" not in caplog.text


def test_the_last_lines_say_what_to_do_next(tmp_path, capsys):
    fit(tmp_path / "my runs", 1)
    last = capsys.readouterr().out.splitlines()[-3:]
    folder = tmp_path / "my runs" / "version_0"
    assert last[0].endswith(f"are in {folder}")
    command = f"mixer-bijectors sample --ckpt_path '{folder}/checkpoints/last.ckpt'"
    assert last[1] == f"draw samples with: {command}"
    assert "grid of patches: train it longer" in last[2] and "photos_tarflow" in last[2]
    # Flows of normflows do not draw samples by the command.
    assert next_steps(None, "last.ckpt") == (
        "score images with: mixer-bijectors score --ckpt_path last.ckpt"
    )
