"""Means that do not depend on who computed what."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

__all__ = ["MeanOverImages"]


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
        return ordered.to(torch.float64).mean()
