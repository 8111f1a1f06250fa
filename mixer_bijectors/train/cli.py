"""The command `mixer-bijectors`."""

import re
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from .checkpoints import AtomicCheckpointIO
from .errors import RunError
from .files import UNWRITABLE, make_folder, unwritable
from .guard import Guard
from .logs import ResumableCSVLogger
from .module import DensityEstimation
from .tasks import FlowTrainer

__all__ = ["main"]

_TASKS = ("sample", "embed", "probe", "score", "reconstruct", "export")


class FlowCLI(LightningCLI):
    """Lightning's command line: one folder for each run, a test after each fit, and tasks."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # Checkpoints are never read in another way, see `AtomicCheckpointIO`.
        theirs = {k: v | {"weights_only"} for k, v in LightningCLI.subcommands().items()}
        return theirs | {task: {"model", "datamodule"} for task in _TASKS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Guard, "guard")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint holds no hyperparameters: the config says what the model is."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config[str(self.subcommand)] if self.subcommand else self.config
        plugins = config.trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if self.subcommand != "fit":
            self.save_config_callback = None
            kwargs["logger"] = False
            return super().instantiate_trainer(**kwargs)
        root = make_folder(config.trainer.default_root_dir or "runs")
        version = self._resume(root)
        if config.trainer.logger is None:
            csv = ResumableCSVLogger(
                root, name="", version=version, flush_logs_every_n_steps=10
            )
            # The same version, so that a run is one folder.
            tensorboard = TensorBoardLogger(root, name="", version=csv.version)
            kwargs["logger"] = [csv, tensorboard]
        return super().instantiate_trainer(**kwargs)

    def _resume(self, root: Path) -> int | None:
        """Which run of the folder to go on with, if any; `last` finds its checkpoint."""
        options = self.config_init["fit"]
        if options.ckpt_path == "last":
            found = sorted(root.glob("version_*/checkpoints/last.ckpt"), key=_version)
            options.ckpt_path = str(found[-1]) if found else None
        if options.ckpt_path is None:
            return None
        path = Path(options.ckpt_path)
        inside = path.parent.parent.parent.resolve() == root.resolve()
        return _version(path) if inside and path.exists() else None

    def after_fit(self) -> None:
        trainer = self.trainer
        checkpoints = trainer.checkpoint_callback
        # A run that ended before its first validation has no best checkpoint.
        best = getattr(checkpoints, "best_model_path", "") or None
        (metrics,) = trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False
        )
        folder = trainer.log_dir  # asks all processes
        if trainer.is_global_zero:
            print(
                f"test bits per dimension {metrics['test/bits_per_dim']:.3f}, "
                f"reconstruction error {metrics['test/reconstruction_error']:.1e}"
            )
            print(f"checkpoints, logs and pictures are in {folder}")


def _version(checkpoint: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", checkpoint.parent.parent.name)
    return int(match[1]) if match else -1


def _with_config(arguments: list[str]) -> list[str]:
    """The arguments, and for a task the config of the run that its checkpoint is from."""
    if not arguments or arguments[0] not in (*_TASKS, "test", "validate"):
        return arguments
    given = [a.split("=")[0] for a in arguments]
    if {"--config", "-c"} & set(given) or "--ckpt_path" not in given:
        return arguments
    position = given.index("--ckpt_path")
    path = (arguments[position].split("=", 1)[1:] or arguments[position + 1 :])[0]
    config = Path(path).parent.parent / "config.yaml"
    return (
        [arguments[0], "--config", str(config), *arguments[1:]]
        if config.exists()
        else arguments
    )


def main() -> None:
    """Run the command line; what a user can mend is told in one sentence."""
    sys.argv[1:] = _with_config(sys.argv[1:])
    try:
        FlowCLI(
            DensityEstimation,
            L.LightningDataModule,
            subclass_mode_data=True,
            trainer_class=FlowTrainer,
            trainer_defaults={"inference_mode": False},
            save_config_kwargs={"overwrite": True},
        )
    except RunError as error:
        sys.exit(f"mixer-bijectors: {error}")
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        path = Path(str(error.filename or "a file"))
        sys.exit(f"mixer-bijectors: {unwritable(path, error)}")
