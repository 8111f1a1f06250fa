"""Models of images by any layers on the mixer matrix."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import normflows as nf
import torch
from torch import Tensor

from .._checks import check_input, check_size, is_readable
from .._repr import describe, format_event
from ..declarations import (
    chain_context,
    chain_shapes,
    check_flow,
    context_features,
    sampling_options,
    shapes_agree,
)
from ..flow import Flow, apply_flow, apply_flows
from ..layers.patch_grid import Patchify
from .bases import Base, reads_classes, use_python_numbers
from .density_model import DensityModel
from .divergences import TargetDivergences
from .labels import check_labels, class_weights

__all__ = ["ImageFlow"]

_FAR_OUT = 8.0  # images in [-1, 1) have no such pixels, with whatever noise they are given


class ImageFlow(DensityModel, TargetDivergences):
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

    Layers may declare `sampling_options`, keywords that `forward`, `forward_and_log_det` and
    `sample` take and hand to them: `method` and `guidance` for a `TransformerAutoregressive`.

    Raises:
        TypeError: a layer that is not a flow, such as a transform of nflows or a class; an
            option of sampling that no layer declares.
        ValueError: an image that is not divisible into patches, layers for other shapes than
            the one before returns, a context of another size than `num_classes`, classes that
            nothing inside reads, a base of another shape.

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
        check_size(name, "num_classes", num_classes, least=0)
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
        if (features := chain_context(name, flows)) and features != num_classes:
            raise ValueError(
                f"{name}: the layers read a context of {features} features, but get classes as "
                f"such, and num_classes={num_classes}; give both the same number"
            )
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
        use_python_numbers(self.q0)

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

    @property
    def sampling_options(self) -> tuple[str, ...]:
        """Names of the options of sampling that the layers declare."""
        return sampling_options(self.flows)

    def forward(self, z: Tensor, labels: Tensor | None = None, **options: Any) -> Tensor:
        """Images (batch, channels, height, width) of latents (batch, num_patches, features)."""
        return self.forward_and_log_det(z, labels, **options)[0]

    def inverse(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (batch, num_patches, features) of images (batch, channels, height, width)."""
        return self.inverse_and_log_det(x, labels)[0]

    def forward_and_log_det(
        self, z: Tensor, labels: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Images of latents, and the log-determinant (batch,) of that map."""
        return self._run_forward(z, labels, options)

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

    def sample(
        self,
        num_samples: int = 1,
        labels: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        trace: bool = False,
        **options: Any,
    ) -> Any:
        """Images (num_samples, channels, height, width) and their log-densities (num_samples,).

        The log-densities are those under the tempered and guided model.

        Args:
            num_samples: number of images, 0 for an empty batch.
            labels: their classes, for a class-conditional model.
            temperature: scales the standard deviation of the base, which must have the
                `temperature` attribute of normflows' Gaussians, and multiplies what that is
                set to.
            generator: source of random numbers; by default the global one.
            trace: return also a list of images, the latents and what comes out of each flow.
            options: the `sampling_options` of the layers, such as `guidance`.
        """
        z, log_prob = self._draw(num_samples, labels, temperature, generator)
        states = [z]
        x, log_det = self._run_forward(z, labels, options, states if trace else None)
        if not trace:
            return x, log_prob - log_det
        patchify = Patchify(self.image_shape, self.patch_size)
        images = [state if state.dim() == 4 else patchify(state)[0] for state in states]
        return x, log_prob - log_det, images

    def check_temperature(self, temperature: float) -> None:
        """Refuse a temperature that the base cannot be set to."""
        self._as_base(self.q0).check_temperature(temperature)

    def embed(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents of images, flattened to (batch, channels * height * width)."""
        return self.inverse(x, labels).flatten(1)

    def _run_forward(
        self,
        z: Tensor,
        labels: Tensor | None,
        options: dict[str, Any],
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images of latents, and log_det; `states` gets what comes out of each flow."""
        name = type(self).__name__
        # What layers declare is looked up for options alone: in a compiler it takes long.
        if unknown := [option for option in options if option not in self.sampling_options]:
            raise TypeError(
                f"{name}: sampling has no option {unknown[0]} here; the options of its layers "
                f"are {', '.join(self.sampling_options) or 'none'}"
            )
        check_input(name, z, *self.latent_shape)
        context = self._context(labels, z)
        if states is None:
            x, log_det = apply_flows(self.flows, z, context, **options)
            return x.contiguous(), log_det
        x, log_det = z, z.new_zeros(z.shape[:1])
        for flow in self.flows:
            x, change = apply_flow(flow, x, context, **options)
            log_det = log_det + change
            states.append(x.contiguous())
        return states[-1], log_det

    def _draw(
        self,
        num_samples: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Latents of the tempered base, and their log-densities, as precise as the layers."""
        check_size(type(self).__name__, "num_samples", num_samples, least=0)
        labels = self._check_labels(labels, num_samples)
        drawn = self._as_base(self.q0).draw(num_samples, labels, temperature, generator)
        like = next(filter(torch.is_floating_point, self.flows.parameters()), None)
        # A base that was built in double precision would have its latents refused.
        if like is None or torch.promote_types(drawn[0].dtype, like.dtype) == like.dtype:
            return drawn
        z, log_prob = (result.to(like.dtype) for result in drawn)
        return z, log_prob

    def _as_base(self, base: Any) -> Base:
        return Base(type(self).__name__, base, self.latent_shape, self.num_classes)

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

    def _context(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels as weights of the classes, None for an unconditional model."""
        labels = self._check_labels(labels, x.shape[0])
        return None if labels is None else class_weights(labels, self.num_classes, x)

    def _check_labels(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Labels (batch,) as int64, None for an unconditional model."""
        name, count = type(self).__name__, self.num_classes
        if labels is None:
            if count:
                raise ValueError(
                    f"{name}: built with num_classes={count} but called without labels; pass "
                    f"integer labels of shape ({batch},), -1 for the null class"
                )
            return None
        if not count:
            raise ValueError(
                f"{name}: got labels, but the model is unconditional; build it with num_classes"
            )
        return check_labels(name, labels, batch, count, null_class=True)
