"""The command `mixer-bijectors`."""

from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from .module import DensityEstimation

__all__ = ["main"]


class FlowCLI(LightningCLI):
    """Lightning's command line, with one folder for each run and a test after each fit."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config[str(self.subcommand)] if self.subcommand else self.config
        if config.trainer.logger is None:
            root = config.trainer.default_root_dir or "runs"
            csv = CSVLogger(root, name="", flush_logs_every_n_steps=10)
            # The same version, so that a run is one folder.
            tensorboard = TensorBoardLogger(root, name="", version=csv.version)
            kwargs["logger"] = [csv, tensorboard]
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        trainer = self.trainer
        checkpoints = trainer.checkpoint_callback
        # A run that ended before its first validation has no best checkpoint.
        best = "best" if getattr(checkpoints, "best_model_path", "") else None
        (metrics,) = trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False
        )
        if trainer.is_global_zero:
            print(
                f"test bits per dimension {metrics['test/bits_per_dim']:.3f}, "
                f"reconstruction error {metrics['test/reconstruction_error']:.1e}"
            )
            print(f"checkpoints, logs and pictures are in {trainer.log_dir}")


def main() -> None:
    """Run the command line."""
    FlowCLI(
        DensityEstimation,
        L.LightningDataModule,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
    )
