"""Labels of batches as models take them, and label dropout."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .checks import labels_of
from .data.batches import Batch
from .io.errors import RunError

__all__ = ["drop_labels", "labels_for"]


def labels_for(model: Any, batch: Batch, *, label_dropout: float) -> tuple[Tensor, ...]:
    """The labels of a batch for a model that takes any; the null class if the batch has none.

    Args:
        model: a `DensityModel`.
        batch: images, with or without labels.
        label_dropout: the share in training; with 0 the model does not learn the null class.

    Raises:
        RunError: the images have no labels, and the model has no null class.
    """
    if model.label_range is None:
        return ()
    labels = labels_of(batch)
    if labels is not None:
        return (labels.long(),)
    if -1 not in model.label_range:
        raise RunError("the model needs labels, and the images have none")
    if not label_dropout:
        rank_zero_warn(
            "the images have no labels and get -1, the null class, for which the model was not "
            "trained, as its label_dropout is 0"
        )
    return (torch.full((len(batch.images),), -1, device=batch.images.device),)


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
