"""What the models of images share."""

import math
from collections.abc import Iterable

import normflows as nf
import torch
from torch import Tensor

from .._checks import check_input, is_readable
from ..flow import Flow, apply_flows
from ..patches import Patchify

__all__ = ["ImageFlow"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class ImageFlow(nf.NormalizingFlow):
    """A normflows model of images whose latents are a mixer matrix, conditional or not.

    Args:
        base: distribution of the latents, of shape (num_patches, features).
        flows: the flows from latent to data, as normflows lists them.
        patchify: the geometry of images and latents.
        num_classes: number of classes; flows get the labels, one-hot, as their context. 0 for
            an unconditional model.
    """

    def __init__(
        self,
        base: nf.distributions.BaseDistribution,
        flows: Iterable[Flow],
        patchify: Patchify,
        num_classes: int,
    ) -> None:
        super().__init__(base, list(flows))
        self.image_shape = patchify.image_shape
        self.patch_size = patchify.patch_size
        self.latent_shape = (patchify.num_patches, patchify.features)
        self.num_classes = num_classes

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
        return apply_flows(self.flows, *self._read_latents(z, labels))

    def inverse_and_log_det(
        self, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents of images, and the log-determinant (batch,) of that map."""
        check_input(type(self).__name__, x, *self.image_shape)
        return apply_flows(self.flows, x, self._context(labels, x), inverse=True)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density (batch,) of images, in nats; see `images.bits_per_dim`."""
        z, log_det = self.inverse_and_log_det(x, labels)
        return self.q0.log_prob(z) + log_det

    def forward_kld(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean negative log-density of a batch, the loss of maximum likelihood."""
        return -self.log_prob(x, labels).mean()

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
        have the `temperature` attribute of normflows' Gaussians; the log-densities are then
        those of the tempered model. Random numbers come from `generator`, if the base is a
        `DiagGaussian`, or from the global one.
        """
        z, log_prob = self._draw(num_samples, temperature, generator)
        x, log_det = self.forward_and_log_det(z, labels)
        return x, log_prob - log_det

    def embed(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents of images, flattened to (batch, channels * height * width)."""
        return self.inverse(x, labels).flatten(1)

    def _draw(
        self, num_samples: int, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Latents of the tempered base, and their log-densities."""
        base, name = self.q0, type(self).__name__
        if not 0 < temperature < math.inf:
            raise ValueError(f"{name}: temperature must be positive, got {temperature}")
        if type(base) is nf.distributions.DiagGaussian:
            shape = (num_samples, *base.loc.shape[1:])
            noise = torch.randn(
                shape, generator=generator, dtype=base.loc.dtype, device=base.loc.device
            )
            log_scale = base.log_scale + math.log(temperature)
            density = -0.5 * (noise.square() + math.log(2 * math.pi)) - log_scale
            return base.loc + log_scale.exp() * noise, density.flatten(1).sum(1)
        if generator is not None:
            raise ValueError(
                f"{name}: {type(base).__name__} takes no generator; leave it out, and seed the "
                "global one with torch.manual_seed"
            )
        if temperature == 1.0:
            return base(num_samples)
        if not hasattr(base, "temperature"):
            raise ValueError(
                f"{name}: {type(base).__name__} has no temperature; use temperature=1.0"
            )
        before, base.temperature = base.temperature, temperature
        try:
            return base(num_samples)
        finally:
            base.temperature = before

    def _read_latents(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        check_input(type(self).__name__, z, *self.latent_shape)
        return z, self._context(labels, z)

    def _context(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels as weights of the classes: one-hot, or uniform for no class in particular."""
        name, batch = type(self).__name__, len(x)
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
                f"pass integer labels of shape ({batch},), -1 for no class in particular"
            )
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        if kind not in _INTEGERS:
            raise TypeError(f"{name}: expected a tensor of integer labels, got {kind}")
        labels = labels.long()
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"{name}: expected labels of shape ({batch},), got {tuple(labels.shape)}"
            )
        if is_readable(labels):
            wrong = labels[(labels < -1) | (labels >= self.num_classes)]
            if len(wrong):
                raise ValueError(
                    f"{name}: labels must be from 0 to {self.num_classes - 1}, or -1 for no "
                    f"class in particular, got {wrong[0].item()}"
                )
        labels = labels.unsqueeze(1)
        classes = torch.arange(self.num_classes, device=labels.device)
        weights = torch.where(labels < 0, 1 / self.num_classes, labels == classes)
        return weights.to(x)
