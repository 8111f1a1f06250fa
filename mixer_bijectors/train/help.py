"""The help of the command, with the options of the task itself first."""

import textwrap
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter

__all__ = ["DESCRIPTION", "MORE", "ShortHelp"]

DESCRIPTION = """\
Train normalizing flows on images, draw samples, and score images.

  mixer-bijectors fit --config photos
  mixer-bijectors sample --ckpt_path runs/photos/version_0/checkpoints/best.ckpt"""

MORE = "Every option: %(prog)s --help-all"
# Options of the parts that tasks share, in words shorter than Lightning's.
_OF_A_FIT = {
    "model.flow": "class path of the model, such as mixer_bijectors.MixerFlow; arguments of it "
    "as --model.flow.init_args.num_layers 8",
    "model.learning_rate": "peak learning rate",
    "model.warmup_steps": "steps of linear warm-up",
    "model.weight_decay": "AdamW's decoupled weight decay",
    "model.noise": "standard deviation of Gaussian noise in place of dequantisation",
    "model.label_dropout": "share of labels replaced by the null class, for guidance",
    "model.compile": "run the density through torch.compile",
    "trainer.default_root_dir": "the folder of runs",
    "trainer.max_steps": "steps of the run",
    "trainer.max_time": "time of the run, as days:hours:minutes:seconds",
    "trainer.val_check_interval": "steps between two validations, or a share of an epoch",
    "guard.limit": "loss from which on it counts as exploded",
    "guard.on_bad_loss": "raise, to end the run at a bad loss, or skip",
}
_OF_ALL = {
    "data": "class path of the data, such as mixer_bijectors.train.Images; arguments of it as "
    "--data.init_args.path FOLDER",
    "trainer.accelerator": "cpu, gpu or auto",
    "trainer.devices": "devices of a machine",
    "trainer.strategy": "ddp, sharded or auto, for several devices",
    "trainer.precision": "such as bf16-mixed or 64-true",
    "seed_everything": "what the run's random numbers depend on",
}
_SHARED = ("guard", "lr_scheduler", "model", "optimizer", "print_config", "trainer")
_IN_OTHER_WORDS = {
    "ckpt_path": "a checkpoint of fit; a fit goes on from it, or from the newest with last",
    "config": "a path, or the name of a config of the package, such as photos; the last wins",
    "verbose": "print the results",
}


class ShortHelp(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """A task's own options, and of those that tasks share the ones most asked for."""

    def __init__(self, prog: str, **options: Any) -> None:
        self._name = prog.replace(" [options]", "")
        super().__init__(self._name, **options)
        self._actions: list[Action] = []
        self._epilog: str | None = None
        self._is_in_section = False

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any) -> None:
        command = "COMMAND " if any(map(_commands, actions)) else ""
        super().add_usage(f"{self._name} {command}[options]", [], *args)

    def start_section(self, heading: str | None) -> None:
        """Begin a section of the long help, whose text the short help leaves out."""
        self._is_in_section = True

    def end_section(self) -> None:
        self._is_in_section = False

    def add_text(self, text: str | None) -> None:
        if self._is_in_section or not text:
            return
        if "\n  " not in text:  # else with examples, on lines of their own
            text = textwrap.fill(" ".join(text.split()), 80)
        if self._actions:
            self._epilog = text
        else:
            super().add_text(text)

    def add_arguments(self, actions: Iterable[Action]) -> None:
        self._actions += actions

    def format_help(self) -> str:
        known = {action.dest: action for action in self._actions}
        own = [
            action
            for dest, action in known.items()
            if "." not in dest and dest not in (*_SHARED, *_OF_ALL)
        ]
        general = [
            action for action in own if {"-h", "-c", "--help-all"} & {*action.option_strings}
        ]
        shared = _OF_A_FIT | _OF_ALL if self._name.endswith(" fit") else _OF_ALL
        sections = {
            "commands": [row for action in own for row in _commands(action)],
            "options": [_shortened(a) for a in own if a.option_strings and a not in general],
            "model, data and devices": [
                _row(known[dest], text) for dest, text in shared.items() if dest in known
            ],
            "general": [_shortened(action) for action in general],
        }
        for heading, rows in sections.items():
            super().start_section(heading)
            super().add_arguments(rows)
            super().end_section()
        super().add_text(self._epilog)
        return super().format_help()


def _commands(action: Action) -> list[Action]:
    """A row for each command."""
    parsers: Any = action.choices if isinstance(action.choices, dict) else {}
    return [
        Action([], name, metavar=name, help=parser.description)
        for name, parser in parsers.items()
    ]


def _row(action: Action, text: str) -> Action:
    """A row of the help with a short text on an option, and its default."""
    name = [string for string in action.option_strings if not string.endswith("+")]
    value = action.dest.rpartition(".")[2].upper()
    default = SUPPRESS if action.default is None else action.default
    return Action(name, action.dest, default=default, metavar=value, help=text)


def _shortened(action: Action) -> Action:
    text = _IN_OTHER_WORDS.get(action.dest)
    return action if text is None else _row(action, text)
