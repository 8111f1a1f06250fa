"""The progress bar of the command."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["Bar"]


class Bar(TQDMProgressBar):
    """Lightning's progress bar without the number of the run, which its folder's name has."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
