"""A tighter bound of the bits per dimension of test images, by samples of their noise."""

from typing import Any

import lightning as L
import torch

from ...images import importance_weighted_bits
from ..checks import Batches, as_batch
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from ..metrics import MeanOverImages

__all__ = ["ImportanceSamples"]


class ImportanceSamples(L.Callback):
    """Logs `test/importance_weighted_bits`, see `images.importance_weighted_bits`.

    The first sample of the noise of an image is the one of `test/bits_per_dim`.

    Args:
        number: samples of noise for each image.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.mean = MeanOverImages()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        if isinstance(module, DensityEstimation) and module.noise:
            raise RunError(
                "importance samples are for dequantised images, and the model is of images "
                f"with noise of {module.noise}; test it without --importance-samples"
            )
        self.mean = MeanOverImages().to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batches,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module: Any = pl_module
        read = as_batch(batch)
        kept = read.kept
        if not kept:
            return
        given = module.flow_labels(read)
        bits = importance_weighted_bits(
            module.model,
            read.images[kept],
            self.number,
            labels=given[0][kept] if given else None,
            dtype=torch.float64 if module.dtype == torch.float64 else torch.float32,
            seeds=[read.seeds[position] for position in kept] if read.seeds else None,
        )
        self.mean.update(bits)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("test/importance_weighted_bits", self.mean.compute())
