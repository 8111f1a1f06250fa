"""The LightningModule that fits a flow to images."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import normflows as nf
import torch
from torch import Tensor

from ..images import add_noise, bits_per_dim, dequantize

__all__ = ["Batch", "DensityEstimation"]

# 8-bit images, or 8-bit images and labels
Batch = Tensor | Sequence[Tensor]
_FIRST = 16


class DensityEstimation(L.LightningModule):
    """Maximum likelihood of 8-bit images, by AdamW with warm-up and a cosine to zero.

    Batches are uint8 images of shape (batch, channels, height, width), or pairs of images and
    labels of shape (batch,) for a class-conditional flow.

    Logs bits per dimension of each split, and in validation and test the reconstruction error:
    the largest difference, on the scale of [-1, 1), between the first images of the split and
    what comes back from their latents. With Gaussian noise the bits are those of noisy images,
    to be compared among runs with the same noise alone.

    Args:
        flow: the model, over images in [-1, 1).
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's decoupled weight decay.
        betas: AdamW's averaging coefficients.
        noise: standard deviation of Gaussian noise that is added to images, on the scale of
            [-1, 1), for samples to be denoised; 0 for uniform dequantisation instead, for
            likelihoods.
        label_dropout: share of training labels that are replaced by -1, no class in
            particular, as guidance needs.
    """

    def __init__(
        self,
        flow: nf.NormalizingFlow,
        learning_rate: float = 4e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        noise: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not noise >= 0:
            raise ValueError(f"DensityEstimation: noise must not be negative, got {noise}")
        if not 0 <= label_dropout <= 1:
            raise ValueError(
                f"DensityEstimation: label_dropout must be from 0 to 1, got {label_dropout}"
            )
        self.flow = flow
        self.betas = betas
        self.noise = noise
        self.label_dropout = label_dropout
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, labels = self.prepare(batch)
        if self.label_dropout:
            labels = tuple(
                y.long().masked_fill(
                    torch.rand(y.shape, device=y.device) < self.label_dropout, -1
                )
                for y in labels
            )
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
        options: dict[str, Any] = {"batch_size": len(x), "sync_dist": True}
        self.log(f"{split}/bits_per_dim", bits.mean(), prog_bar=True, **options)
        if batch_idx == 0:  # the way back of autoregressive models takes its time
            back = self.flow(z[:_FIRST], *(y[:_FIRST] for y in labels))
            error = (back - x[:_FIRST]).abs().max()
            self.log(f"{split}/reconstruction_error", error, reduce_fx="max", **options)

    def prepare(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Images in [-1, 1), and the labels if there are any."""
        images, *labels = [batch] if isinstance(batch, Tensor) else batch
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        if self.noise:
            x = add_noise(images, self.noise, dtype=dtype, generator=generator)
        else:
            x = dequantize(images, dtype=dtype, generator=generator)
        return x, tuple(labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
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
