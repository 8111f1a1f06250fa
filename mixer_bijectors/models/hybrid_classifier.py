"""A density and a classifier in one."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..images import bits_per_dim
from .density_model import DensityModel
from .image_flow import ImageFlow
from .labels import check_labels

__all__ = ["HybridClassifier"]


class HybridClassifier(DensityModel, nn.Module):
    r"""A flow, and a linear classifier of its latents, trained together.

    .. math:: -\frac{1}{D} \log p(x) - \lambda \log p(y \mid x)

    One pass of the flow gives both the density of an image and the embedding that the
    classifier reads. It starts with all classes as likely. The density stays exact and the
    flow invertible, whatever the weight.

    Args:
        flow: an unconditional model of images, such as `MixerFlow` or `TarFlow`.
        num_classes: number of classes.
        weight: :math:`\lambda`, of the cross-entropy against the negative log-density for each
            of the :math:`D` dimensions, both in nats.

    Shapes: images (batch, channels, height, width), labels (batch,), log-densities (batch,),
    logits (batch, num_classes).

    Raises:
        TypeError: `flow` is no model of images; labels that are not a tensor of integers.
        ValueError: `flow` is class-conditional, fewer than two classes, a weight that is
            negative or not finite; labels of another shape or out of range (looked at on the
            CPU only).

    References:
        Nalisnick et al., Hybrid models with deep and invertible features, 2019
        (https://arxiv.org/abs/1902.02767)

    Example:
        >>> flow = mb.MixerFlow((1, 8, 8), 2, num_layers=2, hidden_features=16)
        >>> model = HybridClassifier(flow, num_classes=10, weight=0.1)
        >>> x, labels = 2 * torch.rand(5, 1, 8, 8) - 1, torch.arange(5)
        >>> log_prob, logits = model(x)
        >>> logits.shape
        torch.Size([5, 10])
        >>> loss = model.loss(x, labels)
    """

    metric_names = ("bits_per_dim", "accuracy", "calibration_error")

    def __init__(self, flow: ImageFlow, num_classes: int, *, weight: float) -> None:
        super().__init__()
        if not isinstance(flow, ImageFlow):
            raise TypeError(
                "HybridClassifier: flow must be a model of images such as MixerFlow, got "
                f"{type(flow).__name__}"
            )
        if flow.num_classes:
            raise ValueError(
                "HybridClassifier: the flow is class-conditional, and would read the labels "
                "that are to be told; build it without num_classes"
            )
        if num_classes < 2:
            raise ValueError(
                f"HybridClassifier: num_classes must be at least 2, got {num_classes}"
            )
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"HybridClassifier: weight must be finite and not negative, got {weight}"
            )
        self.flow = flow
        self.num_classes = num_classes
        self.weight = weight
        self.image_shape = flow.image_shape
        self.head = nn.Linear(math.prod(flow.latent_shape), num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities and logits of images."""
        z, log_det = self.flow.inverse_and_log_det(x)
        # A flow keeps the precision of the images, and a linear map needs that of its weights.
        logits = self.head(z.flatten(1).to(self.head.weight.dtype))
        return self.flow.base_log_prob(z) + log_det, logits

    @property
    def density(self) -> ImageFlow:
        """The flow."""
        return self.flow

    @property
    def label_range(self) -> range:
        """The labels that the loss takes."""
        return range(self.num_classes)

    def loss_and_metrics(
        self, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a scalar, and its metrics, in one pass; see `DensityModel`."""
        log_prob, logits = self(x)
        loss = self.combine(log_prob, logits, labels)
        right = logits.argmax(1) == labels
        confidence = logits.softmax(1).amax(1)
        return loss, {
            "bits_per_dim": bits_per_dim(log_prob, x.shape[1:]),
            "accuracy": right.float(),
            "calibration_error": torch.stack((confidence, right.to(confidence)), 1),
        }

    def combine(self, log_prob: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """The loss from what `forward` returns."""
        batch, count = logits.shape
        if labels is None:
            raise ValueError(
                "HybridClassifier: the loss needs labels; pass integer labels of shape "
                f"({batch},)"
            )
        labels = check_labels("HybridClassifier", labels, batch, count, null_class=False)
        nats = -log_prob.mean() / math.prod(self.image_shape)
        return nats + self.weight * F.cross_entropy(logits, labels)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities (batch,) of images, in nats."""
        return self.flow.log_prob(x)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Samples of the flow, see there."""
        return self.flow.sample(*args, **kwargs)

    def embed(self, x: Tensor) -> Tensor:
        """Latents (batch, channels * height * width), which the classifier reads."""
        return self.flow.embed(x)
