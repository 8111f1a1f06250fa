"""Metrics of all images of a split, the same for any number of processes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.utilities import dim_zero_cat

from .io.errors import RunError

__all__ = ["CalibrationError", "MeanOverImages", "check_results", "make_metrics"]


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


class CalibrationError(MeanOverImages):
    """Expected calibration error in 15 bins; a process may have nothing to add to it.

    Example:
        >>> error = CalibrationError()
        >>> error.update(torch.tensor([[1.0, 1.0], [0.75, 0.0]]))  # confidence, 1 if right
        >>> error.update(torch.zeros(0, 2))
        >>> error.compute()
        tensor(0.3750)
    """

    def compute(self) -> Tensor:
        confidence, right = dim_zero_cat(self.values).unbind(1)
        return binary_calibration_error(confidence, right.long())


def make_metrics(names: Iterable[str]) -> nn.ModuleDict:
    """The metrics of a model by name, each updated with what its `loss_and_metrics` returns."""
    known = {"calibration_error": CalibrationError}
    return nn.ModuleDict({name: known.get(name, MeanOverImages)() for name in names})


def check_results(model: Any, results: Any, batch: int) -> Any:
    """The loss and the metrics of a model, unless they are of other shapes than promised."""
    loss, metrics = results
    name = type(getattr(model, "flow", model)).__name__
    if loss.dim():
        raise RunError(f"{name}: the loss must be a scalar, got shape {tuple(loss.shape)}")
    for metric in model.metric_names:
        got = tuple(metrics[metric].shape) if metric in metrics else None
        want = (batch, 2) if metric == "calibration_error" else (batch,)
        if got != want:
            raise RunError(
                f"{name}: the metric {metric} must be of shape {want}, for each image of the "
                f"batch, got {'none' if got is None else got}"
            )
    return results
