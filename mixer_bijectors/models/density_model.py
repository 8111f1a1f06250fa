"""The base class of models of images: what training and the tasks ask of them."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..images import bits_per_dim

__all__ = ["DensityModel"]


class DensityModel:
    """A model of images that answers for itself in training.

    A subclass has `log_prob`, of which the loss is made, in bits per dimension. One with
    another loss writes `loss_and_metrics`, and where it holds a model of images, `density`.

    Attributes:
        num_classes: number of classes, 0 for none.
        metric_names: names of the metrics, in the order in which they are shown.

    Example:
        >>> model = mb.MixerFlow((1, 8, 8), 2, num_layers=2, hidden_features=16)
        >>> loss, metrics = model.loss_and_metrics(2 * torch.rand(5, 1, 8, 8) - 1)
        >>> loss.shape, metrics["bits_per_dim"].shape
        (torch.Size([]), torch.Size([5]))
    """

    num_classes: int
    metric_names: ClassVar[tuple[str, ...]] = ("bits_per_dim",)

    @property
    def density(self) -> Any:
        """The density alone, which samples, inverts and embeds images."""
        return self

    @property
    def label_range(self) -> range | None:
        """The labels that the loss takes, -1 for the null class; None if it takes none."""
        return range(-1, self.num_classes) if self.num_classes else None

    def loss_and_metrics(
        self, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a scalar, and its metrics, in one pass.

        A metric is a number for each image, (batch,), of which the mean counts. That of
        `calibration_error` is (batch, 2): the confidence of the prediction, and 1 if it is
        right.
        """
        given = () if labels is None else (labels,)
        model: Any = self
        bits = bits_per_dim(model.log_prob(x, *given), x.shape[1:])
        return bits.mean(), {"bits_per_dim": bits}

    def loss(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of a batch in training, a scalar."""
        return self.loss_and_metrics(x, labels)[0]

    @torch.no_grad()
    def metrics(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The metrics of a batch by name, see `loss_and_metrics`."""
        return self.loss_and_metrics(x, labels)[1]
