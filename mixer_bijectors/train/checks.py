"""Checks of the batches, the precision and the model of a run."""

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from .data.batches import Batch
from .io.errors import DataError, RunError

__all__ = ["Batches", "as_batch", "check_precision", "warn_if_scaled", "warn_if_untrained"]

# Batches that a data module may return: 8-bit images, images with labels, a `Batch`, or the
# error that reading them raised in a worker.
Batches = Tensor | Sequence[Tensor] | Batch | DataError


def as_batch(batch: Batches) -> Batch:
    """The batch of any data module as a `Batch`.

    Raises:
        DataError: the batch could not be read, or holds no 8-bit images.
    """
    if isinstance(batch, DataError):
        raise batch
    if isinstance(batch, Tensor):
        batch = Batch(batch)
    elif not isinstance(batch, Batch):
        if not (isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor)):
            raise DataError(
                "DensityEstimation: a batch must be a tensor of images, or a pair of images "
                f"and labels, got a {type(batch).__name__}"
            )
        batch = Batch(batch[0], batch[1] if len(batch) > 1 else None)
    images = batch.images
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(
            "DensityEstimation: images must be uint8 of shape (batch, channels, height, "
            f"width), got {images.dtype} of shape {tuple(images.shape)}; hand them over with "
            "levels from 0 to 255, which the module scales"
        )
    return batch


def check_precision(trainer: L.Trainer) -> None:
    """Refuse to convert a model to 16 bits, in which log-densities lose their digits."""
    precision = str(trainer.precision)
    if precision in ("bf16-true", "16-true"):
        raise RunError(
            f"precision {precision} is not for densities, whose log-determinants need 32 bits; "
            f"use {precision.replace('true', 'mixed')}, which keeps them there"
        )


def warn_if_scaled(images: Tensor) -> None:
    """Warn of images in [0, 1] that were converted to 8 bits; one host synchronisation."""
    if images.numel() and 0 < images.max() <= 1:
        rank_zero_warn(
            "DensityEstimation: no pixel of the first batch is above 1, but images are read as "
            "8-bit, from 0 to 255; multiply images in [0, 1] by 255 before they are converted "
            "to uint8"
        )


def warn_if_untrained(flow: nn.Module) -> None:
    """Warn of layers that the first batch initialises, if they have seen no batch."""
    initialized = [
        buffer
        for name, buffer in flow.named_buffers()
        if name.endswith((".initialized", ".data_dep_init_done"))
    ]
    untrained = sum(not bool(buffer) for buffer in initialized)
    if untrained:
        rank_zero_warn(
            f"the model was never trained: {untrained} of its {len(initialized)} layers of "
            "activation normalisation have seen no batch; fit it, or load the weights of a fit"
        )
