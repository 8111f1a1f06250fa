"""The command `mixer-bijectors`."""

import argparse
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import distributed

from .checkpoints import AtomicCheckpointIO
from .errors import RunError
from .files import UNWRITABLE, make_folder, unwritable
from .guard import Guard
from .logs import ResumableCSVLogger
from .module import DensityEstimation
from .parts import NO_CHECKPOINT
from .tasks import FlowTrainer

__all__ = ["main"]

_TASKS = ("sample", "embed", "probe", "score", "reconstruct", "export")


class FlowCLI(LightningCLI):
    """Lightning's command line: one folder for each run, a test after each fit, and tasks."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # Checkpoints are never read in another way, see `AtomicCheckpointIO`.
        theirs = {k: v | {"weights_only"} for k, v in LightningCLI.subcommands().items()}
        del theirs["predict"]  # the tasks do
        return theirs | {task: {"model", "datamodule"} for task in _TASKS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Guard, "guard")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint holds no hyperparameters: the config says what the model is."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[str(self.subcommand)]
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

    def _resume(self, root: Path) -> int:
        """The number of the run, new or to go on with; finds the checkpoint `last`."""
        options = self.config_init["fit"]
        if options.ckpt_path == "last":
            found = root.glob("version_*/checkpoints/last.ckpt")
            newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
            options.ckpt_path = newest and str(newest)
        versions = [_version(path) for path in root.glob("version_*")]
        if options.ckpt_path is not None:
            path = Path(options.ckpt_path).resolve()
            if path.exists() and path.parents[2] == root.resolve():
                return _version(path.parents[1])
        return self._claim(root, max(versions, default=-1) + 1)

    def _claim(self, root: Path, version: int) -> int:
        """Make the folder of a new run, which no other run that starts now can then take."""
        if getattr(rank_zero_only, "rank", 0):
            return version  # what the first process says counts
        while True:
            try:
                (root / f"version_{version}").mkdir()
            except FileExistsError:
                version += 1
            else:
                return version

    def before_validate(self) -> None:
        self._need_checkpoint("validate")

    def before_test(self) -> None:
        self._need_checkpoint("test")

    def _need_checkpoint(self, subcommand: str) -> None:
        if self.config_init[subcommand].ckpt_path is None:
            raise RunError(NO_CHECKPOINT)

    def after_fit(self) -> None:
        trainer: Any = self.trainer
        folder = trainer.log_dir  # asks all processes
        data = self.datamodule
        has_tests = is_overridden("test_dataloader", data, L.LightningDataModule)
        if has_tests and trainer.limit_test_batches:
            checkpoints = trainer.checkpoint_callback
            # A run that ended before its first validation has no best checkpoint.
            best = getattr(checkpoints, "best_model_path", "") or None
            for callback in trainer.callbacks:
                if isinstance(callback, WeightAveraging):
                    # Else Lightning would load the weights that are not averaged.
                    callback._average_model = None
            (metrics,) = trainer.test(
                self.model, datamodule=data, ckpt_path=best, verbose=False
            )
            if trainer.is_global_zero:
                print(
                    f"test bits per dimension {metrics['test/bits_per_dim']:.3f}, "
                    f"reconstruction error {metrics['test/reconstruction_error']:.1e}"
                )
        if trainer.is_global_zero:
            print(f"checkpoints, logs and pictures are in {folder}")


class _ConfigOfRun(SaveConfigCallback):
    """Writes `config.yaml` once the checkpoint that a run goes on from has been accepted."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Not yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


def _version(folder: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", folder.name)
    return int(match[1]) if match else -1


def _with_config(arguments: list[str]) -> list[str]:
    """The arguments, and for a task the config of the run that its checkpoint is from."""
    if not arguments or arguments[0] not in (*_TASKS, "test", "validate"):
        return arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c")
    parser.add_argument("--ckpt_path")
    try:
        given, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return arguments  # to be told by the parser proper
    if given.config or not given.ckpt_path:
        return arguments
    config = Path(given.ckpt_path).parent.parent / "config.yaml"
    return (
        [arguments[0], "--config", str(config), *arguments[1:]]
        if config.exists()
        else arguments
    )


def main() -> None:
    """Run the command line; what a user can mend is told in one sentence.

    With `MIXER_BIJECTORS_TRACEBACK` in the environment, where it was found is shown as well.
    """
    sys.argv[1:] = _with_config(sys.argv[1:])
    warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    try:
        FlowCLI(
            DensityEstimation,
            L.LightningDataModule,
            subclass_mode_data=True,
            trainer_class=FlowTrainer,
            trainer_defaults={"inference_mode": False},
            save_config_callback=_ConfigOfRun,
            save_config_kwargs={"overwrite": True},
        )
    except Exception as error:
        reason = _reason(error)
        if reason is None or "MIXER_BIJECTORS_TRACEBACK" in os.environ:
            raise
        sys.exit(f"mixer-bijectors: {reason}")


def _reason(error: Exception) -> str | None:
    """What to tell of an error that a user can mend; None for any other."""
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return str(unwritable(Path(str(error.filename or "a file")), error))
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        misfit = str(error).splitlines()[-1].strip()
        return f"the checkpoint does not fit the model of the config: {misfit}"
    lost = re.search("gloo|NCCL|Connection (closed|reset)", str(error))
    if distributed.is_initialized() and isinstance(error, RuntimeError) and lost:
        return f"another process has failed, or left this one waiting: {error}".splitlines()[0]
    if isinstance(error, ValueError | TypeError | MisconfigurationException):
        # What was wrong at first: the parser wraps errors in longer ones.
        while (inner := error.__cause__ or error.__context__) is not None:
            error = inner  # type: ignore[assignment]
        return str(error).splitlines()[0]
    return None
