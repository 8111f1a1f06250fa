"""Checkpoints that are complete whenever they are there, and never run code when loaded."""

import os
import pickle
import signal
import subprocess
import textwrap
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from .._lightning import has_saved, validation_follows
from .errors import RunError
from .files import atomic_write, make_folder, remove_drafts

__all__ = [
    "AtomicCheckpointIO",
    "LastCheckpoint",
    "check_resumable",
    "checkpoint_in",
    "load_checkpoint",
    "load_state",
    "misfit",
    "newest_first",
]

# The key that Lightning writes into each checkpoint, and reads first.
_VERSION = "pytorch-lightning_version"


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, from which a run goes on: every so often, and when it ends.

    It is written after the first validation as well, so that no run that has kept its best
    checkpoint is without one. `mixer-bijectors fit` adds this callback to each run whose config
    has none.

    In a job of SLURM also when SIGUSR1 arrives (`sbatch --signal SIGUSR1@120`), after which the
    job is put into the queue again.

    Args:
        every_n_train_steps: steps between two checkpoints.
        train_time_interval: time between two, in place of steps; without either, ten minutes.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
    ) -> None:
        if every_n_train_steps is None and train_time_interval is None:
            train_time_interval = timedelta(minutes=10)
        super().__init__(
            filename="last",
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            enable_version_counter=False,
        )
        self._awaits_validation = self._is_job_ending = False
        self._is_first = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            remove_drafts(str(self.dirpath))
        if stage == "fit" and "SLURM_JOB_ID" in os.environ:
            # Lightning's own handler would save in the middle of a step, and different ones in
            # different processes; it is not installed where there is another.
            signal.signal(signal.SIGUSR1, self._note_end_of_job)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step

    def _note_end_of_job(self, *_: Any) -> None:
        self._is_job_ending = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any
    ) -> None:
        if trainer.global_step == self._step:
            return  # the gradients that wait for the step are in no checkpoint
        self._step = trainer.global_step
        if validation_follows(trainer):
            # After the validation, which a run that goes on from before it would leave out.
            self._awaits_validation = True
        else:
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._awaits_validation:
            self._awaits_validation = False
            self._save_if_due(trainer, pl_module)
            if self._is_first and not has_saved(self, trainer):
                self._write(trainer)
            self._is_first = False

    def _save_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint if it is time, or the job is about to end."""
        super().on_train_batch_end(trainer, pl_module, None, None, 0)
        if "SLURM_JOB_ID" not in os.environ:
            return
        if trainer.strategy.reduce_boolean_decision(self._is_job_ending, all=False):
            self._is_job_ending = False
            self._write(trainer)
            if trainer.is_global_zero:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        epochs = trainer.current_epoch
        ends = (trainer.global_step, trainer.max_steps), (epochs + 1, trainer.max_epochs)
        over = trainer.should_stop or any(done == end for done, end in ends)
        if over and not has_saved(self, trainer):
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        # As Lightning keeps it for what it writes itself, and others look it up.
        self.best_model_path = self.format_checkpoint_name({})
        trainer.save_checkpoint(self.best_model_path, weights_only=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are complete whenever they are there, and never run code when loaded."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint to a local file, or to where else fsspec reaches."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        make_folder(Path(path).parent)
        with atomic_write(path) as draft, draft.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's zip writer hides what the system said.
                said = error.__context__
                raise (said if isinstance(said, OSError) else error) from None

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; whatever `weights_only` is, of tensors and plain values alone."""
        if "://" in str(path):
            where: Any = map_location or "cpu"
            return super().load_checkpoint(path, where, weights_only=True)
        loaded = load_checkpoint(path, map_location or "cpu")
        _check_is_of_fit(loaded, path)
        return loaded


def newest_first(*places: tuple[Path, str]) -> list[Path]:
    """Checkpoints of some places, without those that a killed process has not completed.

    Args:
        places: folders, and patterns of the folders in them that hold checkpoints.
    """
    found = {path for root, folders in places for path in root.glob(f"{folders}/*.ckpt")}
    complete = (path for path in found if path.name[0] != ".")
    return sorted(complete, key=lambda path: path.stat().st_mtime, reverse=True)


def checkpoint_in(run: str | os.PathLike[str]) -> Path:
    """Find the checkpoint of a run; in a folder, the best one of its newest run.

    Raises:
        RunError: there is no such file or folder, or no checkpoint in it.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise RunError(f"there is no run or checkpoint {path}")
    found = newest_first((path, "**"))
    if not found:
        raise RunError(f"there is no checkpoint in {path}")
    folder = found[0].parent
    names = (folder / "best.ckpt", folder / "last.ckpt")
    return next((name for name in names if name.is_file()), found[0])


def load_checkpoint(
    path: str | os.PathLike[str], map_location: Any = "cpu", *, mmap: bool | None = None
) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values, without running any code in it.

    Args:
        path: the file.
        map_location: the device that its tensors are read to.
        mmap: leave tensors on disk until they are looked at.

    Raises:
        RunError: there is no such file, or it is damaged, or holds anything else.
    """
    if Path(path).suffix == ".safetensors" and Path(path).is_file():
        raise RunError(
            f"{path} is an exported file, which mixer_bijectors.train.load reads; name a "
            "checkpoint of the run that it was exported from"
        )
    if Path(path).is_dir():
        inside = next(iter(newest_first((Path(path), "**"))), "checkpoints/best.ckpt")
        raise RunError(f"{path} is a folder; name a checkpoint in it, such as {inside}")
    try:
        loaded = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise RunError(f"there is no checkpoint {path}") from error
    except PermissionError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        reason = "holds more than tensors and plain values, and was not read"
        if not zipfile.is_zipfile(path):
            reason = "is damaged, or no checkpoint, or holds more than tensors and plain values"
        raise RunError(f"{path} {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged, or no checkpoint") from error
    if not isinstance(loaded, dict):
        raise RunError(f"{path} is no checkpoint: it holds a {type(loaded).__name__}")
    return loaded


def check_resumable(path: str | os.PathLike[str]) -> None:
    """Raise a RunError if no fit can go on from a checkpoint."""
    loaded = load_checkpoint(path, mmap=True)
    _check_is_of_fit(loaded, path)
    if "optimizer_states" not in loaded:
        raise RunError(
            f"{path} holds weights alone, as save_weights_only has it, and no fit can go on "
            "from it; name a checkpoint that LastCheckpoint has written"
        )


def _check_is_of_fit(loaded: dict[str, Any], path: str | os.PathLike[str]) -> None:
    if _VERSION not in loaded:
        raise RunError(
            f"{path} is no checkpoint of fit, as it holds no {_VERSION}; name one that fit has "
            "written, such as runs/NAME/version_N/checkpoints/last.ckpt"
        )


def load_state(module: nn.Module, state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Load the weights of a file, or raise a RunError that says why they do not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"the weights of {path} do not fit the model of the config: {misfit(str(error))}"
        ) from error


def misfit(message: str) -> str:
    """The last of the reasons why weights do not fit a model, of those that torch gives."""
    return textwrap.shorten(message.splitlines()[-1], 300, placeholder=" ...")
