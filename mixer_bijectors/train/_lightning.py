"""All that the training code uses of Lightning and is not public, behind plain names.

`tests/test_lightning.py` has a test of each, which fails when an upgrade takes it away.
"""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies import ModelParallelStrategy

__all__ = [
    "CLIWithoutHyperparameters",
    "ContinuedWriter",
    "averages_buffers",
    "forget_average",
    "has_saved",
    "set_data_parallel_size",
    "trainer_of",
    "training_loader",
    "validation_follows",
]


class CLIWithoutHyperparameters(LightningCLI):
    """Lightning's command line, which does not look for hyperparameters in checkpoints.

    Checkpoints of `DensityEstimation` hold none, and to look for them reads the whole file.
    """

    def _parse_ckpt_path(self) -> None:
        pass


class ContinuedWriter(ExperimentWriter):
    """Lightning's writer of a CSV log, which begins with the `columns` of one that is there."""

    def __init__(self, folder: str, columns: list[str]) -> None:
        super().__init__(folder)
        self.metrics_keys = columns

    def _check_log_dir_exists(self) -> None:
        """Keep what is in the folder, which Lightning removes."""


def averages_buffers(callback: WeightAveraging) -> bool:
    """Whether a callback averages buffers as well as parameters."""
    return bool(callback._use_buffers)


def forget_average(callback: WeightAveraging) -> None:
    """Have the next checkpoint load its averaged weights, as after the end of a fit."""
    callback._average_model = None


def has_saved(callback: ModelCheckpoint, trainer: L.Trainer) -> bool:
    """Whether a callback has written a checkpoint of this step, or must not write one now."""
    return callback._should_skip_saving_checkpoint(trainer)


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Set over how many processes a strategy shares out the batches."""
    strategy._data_parallel_size = size


def trainer_of(module: L.LightningModule) -> L.Trainer | None:
    """The trainer of a module, None while it has none."""
    return module._trainer


def training_loader(trainer: L.Trainer) -> Any:
    """The DataLoader of a fit, before the fit has begun."""
    source: Any = trainer.fit_loop._data_source
    return source.dataloader()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after the batch that has just been trained on."""
    loop: Any = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))
