"""Labels of classes: their check, and weights of the classes in their place."""

import torch
from torch import Tensor

from .._checks import is_readable

__all__ = ["check_labels", "class_weights"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_labels(
    name: str, labels: Tensor, batch: int, num_classes: int, *, null_class: bool
) -> Tensor:
    """Labels (batch,) as int64.

    Args:
        name: name of the model, for messages.
        labels: the labels.
        batch: number of images.
        num_classes: number of classes.
        null_class: whether a label may be -1.

    Raises:
        TypeError: labels that are not a tensor of integers.
        ValueError: labels of another shape, or out of range (looked at on the CPU only).
    """
    kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
    if kind not in _INTEGERS:
        raise TypeError(f"{name}: expected a tensor of integer labels, got {kind}")
    if labels.shape != (batch,):
        raise ValueError(
            f"{name}: expected labels of shape ({batch},), got {tuple(labels.shape)}"
        )
    labels = labels.long()
    if is_readable(labels):
        wrong = labels[(labels < (-1 if null_class else 0)) | (labels >= num_classes)]
        if len(wrong):
            null = ", or -1 for the null class" if null_class else ""
            raise ValueError(
                f"{name}: labels must be from 0 to {num_classes - 1}{null}, got "
                f"{wrong[0].item()}"
            )
    return labels


def class_weights(labels: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Weights (batch, num_classes) of labels: one-hot rows, uniform ones for the null class.

    Labels of no class, which are found on a GPU and in a graph by nobody, give NaN.
    """
    labels = labels.unsqueeze(1)
    classes = torch.arange(num_classes, device=labels.device)
    weights = torch.where(labels == -1, 1 / num_classes, labels == classes)
    return weights.where((labels >= -1) & (labels < num_classes), torch.nan).to(like)
