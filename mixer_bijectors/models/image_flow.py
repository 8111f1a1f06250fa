"""What the models of images share."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import normflows as nf
import torch
from torch import Tensor

from .._checks import check_input, is_readable
from .._repr import describe, format_event
from ..flow import (
    Flow,
    apply_flows,
    chain_shapes,
    check_flow,
    context_features,
    shapes_agree,
)
from ..layers.patch_grid import Patchify
from .bases import Base, class_weights, reads_classes

__all__ = ["ImageFlow"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FAR_OUT = 8.0  # images in [-1, 1) have no such pixels, with whatever noise they are given


class ImageFlow(nf.NormalizingFlow):
    """Density of images by layers on the mixer matrix: a normflows model, conditional or not.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        layers: the flows, listed from latent to data as normflows does. They act on the mixer
            matrix (batch, num_patches, features), which `Patchify` makes of an image; it is put
            at the end unless it is listed, with flows on images after it.
        num_classes: number of classes; layers get the labels, one-hot, as their context, and a
            class-conditional base gets them too. 0 for an unconditional model.
        base: distribution of the latents, of shape (num_patches, features); by default a
            standard normal.

    Shapes: images (batch, channels, height, width), by convention in [-1, 1), labels (batch,),
    latents (batch, num_patches, features), log-probabilities (batch,).

    Raises:
        TypeError: a layer that is not a flow, such as a transform of nflows or a class.
        ValueError: an image that is not divisible into patches, layers for other shapes than
            the one before returns, classes that nothing inside reads, a base of another shape.

    Example:
        >>> maf = nf.flows.MaskedAffineAutoregressive(48, 64)
        >>> layers = [mb.ChannelMixing(maf), mb.PatchMixing(mb.Coupling(16))]
        >>> model = mb.ImageFlow.from_layers((3, 16, 16), 4, layers)
        >>> model.log_prob(2 * torch.rand(5, 3, 16, 16) - 1).shape
        torch.Size([5])
    """

    _warned_of_pixels = False

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        layers: Iterable[Flow],
        *,
        num_classes: int = 0,
        base: nf.distributions.BaseDistribution | None = None,
    ) -> None:
        name = type(self).__name__
        if num_classes < 0:
            raise ValueError(f"{name}: num_classes must not be negative, got {num_classes}")
        flows = list(layers)
        for flow in flows:
            check_flow(name, flow)
        patchify = Patchify(image_shape, patch_size)
        if not any(isinstance(flow, Patchify) for flow in flows):
            flows.append(patchify)
        latent_shape = (patchify.num_patches, patchify.features)
        for what, got, expected in zip(
            ("latents", "images"),
            chain_shapes(name, flows),
            (latent_shape, patchify.image_shape),
        ):
            if got is not None and not shapes_agree(got, expected):
                raise ValueError(
                    f"{name}: the layers are for {what} of shape {format_event(got)}, but "
                    f"image_shape and patch_size give {format_event(expected)}"
                )
        if base is None:
            base = nf.distributions.DiagGaussian(latent_shape, trainable=False)
        if num_classes and not (reads_classes(base) or any(map(context_features, flows))):
            raise ValueError(
                f"{name}: num_classes={num_classes}, but none of the flows inside reads a "
                "context, nor does the base; build one that does, or leave out num_classes"
            )
        super().__init__(base, flows)
        self.image_shape = patchify.image_shape
        self.patch_size = patchify.patch_size
        self.latent_shape = latent_shape
        self.num_classes = num_classes
        self._as_base(self.q0).check()

    @staticmethod
    def from_layers(
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        layers: Iterable[Flow],
        *,
        num_classes: int = 0,
        base: nf.distributions.BaseDistribution | None = None,
    ) -> "ImageFlow":
        """The model of given layers, see the arguments of the class."""
        return ImageFlow(image_shape, patch_size, layers, num_classes=num_classes, base=base)

    def __repr__(self) -> str:
        return describe(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (batch, channels, height, width) of latents (batch, num_patches, features)."""
        return self.forward_and_log_det(z, labels)[0]

    def inverse(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (batch, num_patches, features) of images (batch, channels, height, width)."""
        return self.inverse_and_log_det(x, labels)[0]

    def forward_and_log_det(
        self, z: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images of latents, and the log-determinant (batch,) of that map."""
        x, log_det = apply_flows(self.flows, *self._read_latents(z, labels))
        return x.contiguous(), log_det

    def inverse_and_log_det(
        self, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents of images, and the log-determinant (batch,) of that map."""
        check_input(type(self).__name__, x, *self.image_shape)
        self._look_at_pixels(x)
        z, log_det = apply_flows(self.flows, x, self._context(labels, x), inverse=True)
        return z.contiguous(), log_det

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density (batch,) of images, in nats; see `images.bits_per_dim`."""
        z, log_det = self.inverse_and_log_det(x, labels)
        return self.base_log_prob(z, labels) + log_det

    def base_log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density (batch,) of latents under the base, in nats."""
        return self._as_base(self.q0).log_prob(z, self._check_labels(labels, z.shape[0]))

    def forward_kld(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean negative log-density of a batch, the loss of maximum likelihood."""
        return -self.log_prob(x, labels).mean()

    def reverse_kld(
        self,
        num_samples: int = 1,
        beta: float = 1.0,
        score_fn: bool = True,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Divergence of the model from its target `p`, estimated from samples.

        Args:
            num_samples: number of samples.
            beta: weight of the target's log-density.
            score_fn: let the gradient run through the parameters of the log-density too, not
                only through the samples.
            labels: classes of the samples, for a class-conditional model.
        """
        x, log_q = self.sample(num_samples, labels)
        if not score_fn:
            with self._fixed_parameters():
                log_q = self.log_prob(x, labels)
        return log_q.mean() - beta * self._target_log_prob(x, labels).mean()

    def reverse_alpha_div(
        self,
        num_samples: int = 1,
        alpha: float = 1,
        dreg: bool = False,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Alpha divergence between the target `p` and the model, estimated from samples.

        Args:
            num_samples: number of samples.
            alpha: order of the divergence.
            dreg: take the gradient by the doubly reparametrised estimator.
            labels: classes of the samples, for a class-conditional model.
        """
        x, log_q = self.sample(num_samples, labels)
        log_p = self._target_log_prob(x, labels)
        if not dreg:
            sign = (alpha > 1) - (alpha < 1)
            return sign * (alpha * (log_p - log_q)).logsumexp(0)
        share = num_samples * (alpha * (log_p - log_q).detach()).softmax(0)
        with self._fixed_parameters():
            log_ratio = log_p - self.log_prob(x, labels)
        return -alpha * (((1 - alpha) * share + alpha * share.square()) * log_ratio).mean()

    def sample(
        self,
        num_samples: int = 1,
        labels: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images (num_samples, channels, height, width) and their log-densities (num_samples,).

        A `temperature` other than 1 scales the standard deviation of the base, which must
        have the `temperature` attribute of normflows' Gaussians, and multiplies what that is
        set to; the log-densities are then those of the tempered model. Random numbers come
        from `generator`, or from the global one.
        """
        z, log_prob = self._draw(num_samples, labels, temperature, generator)
        x, log_det = self.forward_and_log_det(z, labels)
        return x, log_prob - log_det

    def embed(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents of images, flattened to (batch, channels * height * width)."""
        return self.inverse(x, labels).flatten(1)

    def _draw(
        self,
        num_samples: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Latents of the tempered base, and their log-densities."""
        labels = self._check_labels(labels, num_samples)
        return self._as_base(self.q0).draw(num_samples, labels, temperature, generator)

    def _as_base(self, base: Any) -> Base:
        return Base(type(self).__name__, base, self.latent_shape, self.num_classes)

    def _target_log_prob(self, x: Tensor, labels: Tensor | None) -> Tensor:
        name = type(self).__name__
        if self.p is None:
            raise ValueError(
                f"{name}: the model has no target; set its attribute p to a distribution with "
                "log_prob(x)"
            )
        target = Base(name, self.p, None, self.num_classes)
        return target.log_prob(x, self._check_labels(labels, x.shape[0]))

    @contextmanager
    def _fixed_parameters(self) -> Iterator[None]:
        """Take parameters as constants; those that are trained are trained again afterwards."""
        trained = [p for p in self.parameters() if p.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_()

    def _look_at_pixels(self, x: Tensor) -> None:
        """Warn once of images on another scale than [-1, 1); on the CPU, where a look is cheap.

        A few pixels far out are no reason: a model's own samples may have them.
        """
        if not is_readable(x) or self._warned_of_pixels or x.numel() == 0:
            return
        least, most = (bound.item() for bound in torch.aminmax(x.detach()))
        if max(-least, most) <= _FAR_OUT:
            return
        if least >= 0 or x.detach().abs().mean().item() > _FAR_OUT:
            self._warned_of_pixels = True
            warnings.warn(
                f"{type(self).__name__}: got images with pixels from {least:.4g} to "
                f"{most:.4g}, where models expect [-1, 1); scale 8-bit images with "
                "images.dequantize",
                stacklevel=2,
            )

    def _read_latents(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        check_input(type(self).__name__, z, *self.latent_shape)
        return z, self._context(labels, z)

    def _context(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels as weights of the classes, None for an unconditional model."""
        labels = self._check_labels(labels, x.shape[0])
        return None if labels is None else class_weights(labels, self.num_classes, x)

    def _check_labels(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Labels (batch,) as int64, None for an unconditional model."""
        name = type(self).__name__
        if not self.num_classes:
            if labels is not None:
                raise ValueError(
                    f"{name}: got labels, but the model is unconditional; build it with "
                    "num_classes"
                )
            return None
        if labels is None:
            raise ValueError(
                f"{name}: built with num_classes={self.num_classes} but called without labels; "
                f"pass integer labels of shape ({batch},), -1 for the null class"
            )
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        if kind not in _INTEGERS:
            raise TypeError(f"{name}: expected a tensor of integer labels, got {kind}")
        if labels.shape != (batch,):
            raise ValueError(
                f"{name}: expected labels of shape ({batch},), got {tuple(labels.shape)}"
            )
        labels = labels.long()
        if is_readable(labels):
            wrong = labels[(labels < -1) | (labels >= self.num_classes)]
            if len(wrong):
                raise ValueError(
                    f"{name}: labels must be from 0 to {self.num_classes - 1}, or -1 for the "
                    f"null class, got {wrong[0].item()}"
                )
        return labels
