"""The LightningModule that fits a flow to images."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import normflows as nf
import torch
from torch import Tensor

from ..images import bits_per_dim, dequantize

__all__ = ["Batch", "DensityEstimation"]

# 8-bit images, or 8-bit images and labels
Batch = Tensor | Sequence[Tensor]


class DensityEstimation(L.LightningModule):
    """Maximum likelihood of 8-bit images, by AdamW with warm-up and a cosine to zero.

    Batches are uint8 images of shape (batch, channels, height, width), or pairs of images and
    labels of shape (batch,) for a class-conditional flow.

    Logs bits per dimension of each split, and in validation and test the reconstruction error:
    the largest difference, on the scale of [-1, 1), between images and what comes back from
    their latents.

    Args:
        flow: the model, over images in [-1, 1).
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's decoupled weight decay.
    """

    def __init__(
        self,
        flow: nf.NormalizingFlow,
        learning_rate: float = 4e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, labels = self.prepare(batch)
        loss = bits_per_dim(self.flow.log_prob(x, *labels), x.shape[1:]).mean()
        self.log("train/bits_per_dim", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # What keeps the residual flows of normflows invertible; nothing for other models.
        nf.utils.update_lipschitz(self.flow, 5)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> None:
        # The same noise every time, so that epochs and models compare on the same numbers.
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        x, labels = self.prepare(batch, generator)
        z, log_det = self.flow.inverse_and_log_det(x, *labels)
        bits = bits_per_dim(self.flow.q0.log_prob(z) + log_det, x.shape[1:])
        error = (self.flow(z, *labels) - x).abs().max()
        options: dict[str, Any] = {"batch_size": len(x), "sync_dist": True}
        self.log(f"{split}/bits_per_dim", bits.mean(), prog_bar=True, **options)
        self.log(f"{split}/reconstruction_error", error, reduce_fx="max", **options)

    def prepare(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Images in [-1, 1), and the labels if there are any."""
        images, *labels = [batch] if isinstance(batch, Tensor) else batch
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return dequantize(images, dtype=dtype, generator=generator), tuple(labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
            return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
