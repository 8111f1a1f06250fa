"""MixerFlow."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import normflows as nf
import torch
from torch import Tensor, nn

from .._checks import check_builder, check_input, is_readable
from ..actnorm import ActNorm
from ..coupling import Coupling
from ..flow import Chain, Flow, apply_flows, reads_context
from ..linear import LULinear
from ..mixing import ChannelMixing, PatchMixing, PixelMixing
from ..patches import Patchify, Shift
from ..univariate import Affine, Univariate

__all__ = ["MixerFlow"]


class MixerFlow(nf.NormalizingFlow):
    r"""Density of images by a flow that mixes features and patches in turn, as MLP-Mixer does.

    From data to latent: an invertible 1x1 map on the colour channels, the mixer matrix of
    patches x features, then `num_layers` layers. A layer is ActNorm, an LU linear map and two
    couplings, which transform one half each, over the features of every patch; then the same
    over the patches of every feature. Every `shift_every`-th layer runs inside a `Shift`, on a
    patch grid moved by half a patch. The whole starts as the identity, save for ActNorm.

    It is a `normflows.NormalizingFlow`: `log_prob`, `sample`, `forward`, `inverse`,
    `forward_and_log_det`, `inverse_and_log_det` and `forward_kld` mean what they mean there,
    take `labels` when the model is class-conditional, and keep float64.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        num_layers: number of mixing layers.
        shift_every: every how many layers one is shifted; 0 for none.
        hidden_features: width of the couplings' nets.
        num_blocks: residual blocks of the couplings' default nets.
        channel_flow: builds the flow over features in place of the two couplings, called with
            the number of features.
        patch_flow: builds the flow over patches in place of the two couplings, called with the
            number of patches, which is smaller in shifted layers.
        univariate: the couplings' elementwise bijection. The default scales by at most e in
            each of the 120 couplings of 30 layers; with a looser bound they explode within the
            first steps of training.
        net: the couplings' conditioner, see `Coupling`.
        num_classes: number of classes; 0 makes an unconditional model. Flows that
            `channel_flow` and `patch_flow` build get the labels, one-hot, as their context if
            they take one: build those of normflows with `context_features=num_classes`.
        base: distribution of the latents of shape (num_patches, features), by default a
            standard normal.

    Shapes: images (batch, channels, height, width), by convention in [-1, 1), labels (batch,),
    latents (batch, num_patches, features), log-probabilities (batch,).

    Raises:
        TypeError: images that are not floating point or of higher precision than the model,
            labels that are not a tensor of integers, a flow where a builder is expected.
        ValueError: an image not divisible into patches or with a single one (on construction),
            a negative count, a base of another shape than the latents, classes that no flow
            inside reads; images of another shape; labels missing, out of range (looked at on
            the CPU only) or given to an unconditional model; a temperature not positive.

    References:
        English et al., MixerFlow: MLP-Mixer meets normalising flows, 2023
        (https://arxiv.org/abs/2310.16777)

    Example:
        >>> model = MixerFlow((3, 16, 16), patch_size=4, num_layers=2, hidden_features=32)
        >>> x = 2 * torch.rand(5, 3, 16, 16) - 1
        >>> model.log_prob(x).shape
        torch.Size([5])
        >>> images, log_prob = model.sample(2)
        >>> images.shape
        torch.Size([2, 3, 16, 16])
        >>> hybrid = MixerFlow(
        ...     (3, 16, 16),
        ...     num_layers=2,
        ...     patch_flow=lambda n: nf.flows.MaskedAffineAutoregressive(n, 4 * n),
        ... )
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        patch_size: int | Sequence[int] = 4,
        num_layers: int = 30,
        *,
        shift_every: int = 4,
        hidden_features: int = 128,
        num_blocks: int = 2,
        channel_flow: Callable[[int], Flow] | None = None,
        patch_flow: Callable[[int], Flow] | None = None,
        univariate: Univariate = Affine(max_log_scale=1.0),
        net: Callable[..., nn.Module] | None = None,
        num_classes: int = 0,
        base: nf.distributions.BaseDistribution | None = None,
    ) -> None:
        patchify = Patchify(image_shape, patch_size)
        for name, build in (("channel_flow", channel_flow), ("patch_flow", patch_flow)):
            check_builder("MixerFlow", name, build)
        counts = {
            "num_layers": num_layers,
            "shift_every": shift_every,
            "num_classes": num_classes,
        }
        for name, count in counts.items():
            if count < 0:
                raise ValueError(f"MixerFlow: {name} must not be negative, got {count}")
        couplings = partial(
            _couplings,
            univariate=univariate,
            net=net,
            hidden_features=hidden_features,
            num_blocks=num_blocks,
            context_features=num_classes,
        )

        def mixing_layer(patchify: Patchify) -> Flow:
            sizes = ((patchify.num_patches, patch_flow), (patchify.features, channel_flow))
            if any(size < 2 and flow is None for size, flow in sizes):
                raise ValueError(
                    f"MixerFlow: couplings cannot mix the {patchify.num_patches} x "
                    f"{patchify.features} matrix of image {patchify.image_shape} and patch "
                    f"{patchify.patch_size}; change patch_size, or leave out shifted layers, "
                    "which have fewer patches, with shift_every=0"
                )
            return Chain(
                [
                    PatchMixing(_step(patchify.num_patches, patch_flow or couplings)),
                    ChannelMixing(_step(patchify.features, channel_flow or couplings)),
                ]
            )

        layers: list[Flow] = [PixelMixing(LULinear(image_shape[0])), patchify]
        for index in range(1, num_layers + 1):
            if shift_every and index % shift_every == 0:
                inner = Patchify(Shift.inner_shape(image_shape, patch_size), patch_size)
                layers.append(Shift(mixing_layer(inner), image_shape, patch_size))
            else:
                layers.append(mixing_layer(patchify))
        latent_shape = (patchify.num_patches, patchify.features)
        if base is None:
            base = nf.distributions.DiagGaussian(latent_shape, trainable=False)
        elif tuple(getattr(base, "shape", latent_shape)) != latent_shape:
            raise ValueError(
                f"MixerFlow: the base must have the shape {latent_shape} of the latents, "
                f"(num_patches, features), got {tuple(base.shape)}"
            )
        # normflows lists flows from latent to data.
        super().__init__(base, layers[::-1])
        if num_classes and not any(map(reads_context, self.flows.modules())):
            raise ValueError(
                f"MixerFlow: num_classes={num_classes}, but none of the flows inside reads a "
                "context; build one that does, or leave out num_classes"
            )
        self.image_shape = patchify.image_shape
        self.latent_shape = latent_shape
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
        check_input("MixerFlow", z, *self.latent_shape)
        return apply_flows(self.flows, z, self._context(labels, z))

    def inverse_and_log_det(
        self, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents of images, and the log-determinant (batch,) of that map."""
        check_input("MixerFlow", x, *self.image_shape)
        return apply_flows(self.flows, x, self._context(labels, x), inverse=True)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density (batch,) of images, in nats; see `images.bits_per_dim`."""
        z, log_det = self.inverse_and_log_det(x, labels)
        return self.q0.log_prob(z) + log_det

    def forward_kld(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean negative log-density of a batch, the loss of maximum likelihood."""
        return -self.log_prob(x, labels).mean()

    def sample(
        self, num_samples: int = 1, labels: Tensor | None = None, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Images (num_samples, channels, height, width) and their log-densities (num_samples,).

        A `temperature` other than 1 scales the standard deviation of the base, which must
        have the `temperature` attribute of normflows' Gaussians; the log-densities are then
        those of the tempered model.
        """
        if not temperature > 0:
            raise ValueError(f"MixerFlow: temperature must be positive, got {temperature}")
        if temperature == 1.0:
            z, log_prob = self.q0(num_samples)
        elif hasattr(self.q0, "temperature"):
            before, self.q0.temperature = self.q0.temperature, temperature
            try:
                z, log_prob = self.q0(num_samples)
            finally:
                self.q0.temperature = before
        else:
            raise ValueError(
                f"MixerFlow: {type(self.q0).__name__} has no temperature; use temperature=1.0"
            )
        x, log_det = self.forward_and_log_det(z, labels)
        return x, log_prob - log_det

    def embed(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents of images, flattened to (batch, channels * height * width)."""
        return self.inverse(x, labels).flatten(1)

    def _context(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """One-hot labels, in the dtype of `x`."""
        if not self.num_classes:
            if labels is not None:
                raise ValueError(
                    "MixerFlow: got labels, but the model is unconditional; "
                    "build it with num_classes"
                )
            return None
        if labels is None:
            raise ValueError(
                f"MixerFlow: built with num_classes={self.num_classes} but called without "
                f"labels; pass integer labels of shape ({len(x)},)"
            )
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"MixerFlow: expected a tensor of integer labels, got {kind}")
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"MixerFlow: expected labels of shape ({len(x)},), got {tuple(labels.shape)}"
            )
        if is_readable(labels):
            wrong = labels[(labels < 0) | (labels >= self.num_classes)]
            if len(wrong):
                raise ValueError(
                    f"MixerFlow: labels must be from 0 to {self.num_classes - 1}, "
                    f"got {wrong[0].item()}"
                )
        classes = torch.arange(self.num_classes, device=labels.device)
        return (labels[:, None] == classes).to(x)


def _step(size: int, flow: Callable[[int], Flow]) -> Chain:
    """From data to latent: ActNorm, a linear map, then `flow`."""
    return Chain([flow(size), LULinear(size), ActNorm(size)])


def _couplings(size: int, **options: Any) -> Chain:
    return Chain([Coupling(size, reverse=True, **options), Coupling(size, **options)])
