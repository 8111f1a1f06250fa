"""Labels of batches as models take them, and label dropout."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .data.batches import Batch
from .io.errors import DataError, RunError

__all__ = ["drop_labels", "labels_for"]

_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def labels_for(model: Any, batch: Batch, *, label_dropout: float) -> tuple[Tensor, ...]:
    """The labels of a batch for a model that takes any; the null class if the batch has none.

    Args:
        model: a `DensityModel`.
        batch: images, with or without labels.
        label_dropout: the share in training; with 0 the model does not learn the null class.

    Raises:
        DataError: labels of another type or shape.
        RunError: the images have no labels, and the model has no null class.
    """
    if model.label_range is None:
        return ()
    labels, number = batch.labels, len(batch.images)
    if labels is not None:
        kind: Any = getattr(labels, "dtype", type(labels).__name__)
        if kind not in _INTEGERS or labels.shape != (number,):
            shape = f" of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else ""
            raise DataError(
                f"DensityEstimation: labels must be integers of shape ({number},), got "
                f"{kind}{shape}"
            )
        return (labels.long(),)
    if -1 not in model.label_range:
        raise RunError("the model needs labels, and the images have none")
    if not label_dropout:
        rank_zero_warn(
            "the images have no labels and get -1, the null class, for which the model was not "
            "trained, as its label_dropout is 0"
        )
    return (torch.full((number,), -1, device=batch.images.device),)


def drop_labels(labels: Tensor, share: float, seeds: Sequence[int]) -> Tensor:
    """Replace a share of the labels, chosen by the seeds, by -1, the null class."""
    if not share:
        return labels
    if seeds:
        draws = torch.tensor([Random(f"label {seed}").random() for seed in seeds])
        draws = draws.to(labels.device, non_blocking=True)
    else:
        draws = torch.rand(labels.shape, device=labels.device)
    return labels.masked_fill(draws < share, -1)
