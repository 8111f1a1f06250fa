"""A density and a classifier in one."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import is_readable
from .image_flow import ImageFlow

__all__ = ["HybridClassifier"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class HybridClassifier(nn.Module):
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
        # The flow answers images of lower precision in theirs, a linear map does not.
        logits = self.head(z.flatten(1).to(self.head.weight.dtype))
        return self.flow.base_log_prob(z) + log_det, logits

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""
        log_prob, logits = self(x)
        return self.combine(log_prob, logits, labels)

    def combine(self, log_prob: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss from what `forward` returns."""
        self._check_labels(labels, logits.shape[0])
        nats = -log_prob.mean() / math.prod(self.image_shape)
        return nats + self.weight * F.cross_entropy(logits, labels.long())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities (batch,) of images, in nats."""
        return self.flow.log_prob(x)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Samples of the flow, see there."""
        return self.flow.sample(*args, **kwargs)

    def embed(self, x: Tensor) -> Tensor:
        """What the classifier reads: latents (batch, channels * height * width)."""
        return self.flow.embed(x)

    def _check_labels(self, labels: Tensor, batch: int) -> None:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        if kind not in _INTEGERS:
            raise TypeError(
                f"HybridClassifier: expected a tensor of integer labels, got {kind}"
            )
        if labels.shape != (batch,):
            raise ValueError(
                f"HybridClassifier: expected labels of shape ({batch},), got "
                f"{tuple(labels.shape)}"
            )
        if is_readable(labels):
            wrong = labels[(labels < 0) | (labels >= self.num_classes)]
            if len(wrong):
                raise ValueError(
                    f"HybridClassifier: labels must be from 0 to {self.num_classes - 1}, got "
                    f"{wrong[0].item()}"
                )
