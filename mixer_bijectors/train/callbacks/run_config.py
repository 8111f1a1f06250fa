"""The configuration of a run beside its checkpoints."""

from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from ..io.once import print_once

__all__ = ["RunConfig"]


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` once the checkpoint that a run goes on from has been accepted.

    It says then which checkpoint that is. The config does not, as it serves for others too.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **options: Any) -> None:
        config = config.clone()
        config.ckpt_path = None
        super().__init__(parser, config, **options)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write nothing before the checkpoint has been accepted."""

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        step = checkpoint["global_step"]
        over = ", and max_steps is reached" if 0 <= trainer.max_steps <= step else ""
        print_once(f"the run goes on from {trainer.ckpt_path}, step {step}{over}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")
