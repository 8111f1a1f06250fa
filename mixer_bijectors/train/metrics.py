"""Means that do not depend on who computed what."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.utilities import dim_zero_cat

__all__ = ["CalibrationError", "MeanOverImages"]


class MeanOverImages(Metric):
    """Mean of one number for each image, to the last bit the same for any number of processes.

    Example:
        >>> mean = MeanOverImages()
        >>> mean.update(torch.tensor([1.0, 2.0]))
        >>> mean.update(torch.tensor([6.0]))
        >>> mean.compute()
        tensor(3., dtype=torch.float64)
    """

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        self.values.append(values.detach())

    def compute(self) -> Tensor:
        # Sorted, so that the rounding of the sum does not depend on the order.
        ordered: Tensor = dim_zero_cat(self.values).sort().values
        mean = ordered.cpu().to(torch.float64).mean()
        # Apple's GPUs have no double precision.
        dtype = torch.float32 if ordered.device.type == "mps" else torch.float64
        return mean.to(ordered.device, dtype)


class CalibrationError(Metric):
    """Expected calibration error in 15 bins; a process may have nothing to add to it.

    Example:
        >>> error = CalibrationError()
        >>> error.update(torch.tensor([[9.0, -9.0], [-9.0, 9.0]]), torch.tensor([0, 1]))
        >>> error.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
        >>> bool(error.compute() < 1e-3)
        True
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.logits.append(logits.detach())
        self.labels.append(labels)

    def compute(self) -> Tensor:
        logits, labels = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        return multiclass_calibration_error(logits, labels, logits.shape[1])
