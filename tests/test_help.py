"""The help of the command."""

import re

import pytest
from commands import CONFIGS, call

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
