"""Models of integer images whose noise of dequantisation is learned."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import normflows as nf
import torch
from torch import Tensor, nn

from .._repr import describe
from ..chain import Chain
from ..images import dequantize, levels_and_noise
from ..layers.matrix_coupling import MatrixCoupling
from ..layers.patch_grid import Patchify
from ..nets import PatchConv
from ..univariate import RationalQuadratic
from .bare_flow import as_density_model
from .density_model import DensityModel

__all__ = ["VariationalDequantization"]


class ImageConditioner(nn.Module):
    """A `PatchConv` that reads, beside each patch of the noise, the same patch of the image.

    The image comes as the context, its mixer matrix flattened, so that any layer with a context
    can be conditioned on it.
    """

    def __init__(
        self,
        num_patches: Sequence[int],
        in_features: int,
        out_features: int,
        *,
        hidden_features: int,
        context_features: int,
    ) -> None:
        super().__init__()
        rows, columns = num_patches
        self.num_patches = rows * columns
        self.net = PatchConv(
            num_patches,
            in_features + context_features // self.num_patches,
            out_features,
            hidden_features=hidden_features,
            num_blocks=1,
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        image = context.unflatten(1, (self.num_patches, -1))
        return self.net(torch.cat((x, image), 2))


class VariationalDequantization(DensityModel, nn.Module):
    r"""Trains a model of images together with the noise that makes integer images continuous.

    .. math:: \log P(x) \ge \mathbb{E}_u \left[ \log p(x + v)
        + \log \left| \frac{\partial v}{\partial u} \right| \right],
        \qquad v = g(u; x), \quad u \sim \mathrm{uniform}[0, 1)

    Uniform dequantisation asks a smooth density to fill the cube of each integer image evenly.
    Here a flow :math:`g`, conditional on the image, turns uniform noise into noise that suits
    the density. It is made of couplings of splines, which map [0, 1] onto itself: without a
    logit and a sigmoid, noise never leaves its level, edges of the cube need no clamp, and the
    flow starts as the identity. So the model starts as `flow` with uniform dequantisation, the
    same to rounding.

    Its bound is at most as tight as the divergence between the noise and the posterior of the
    density allows; `images.importance_weighted_bits` tightens it further.

    Args:
        flow: a model of images, such as `MixerFlow`, or one of normflows.
        image_shape: (channels, height, width), for a flow without an attribute `image_shape`.
        patch_size: side of the patches of the noise in pixels, or (height, width).
        num_layers: number of couplings of the noise.
        hidden_features: width of their nets.
        num_bins: number of bins of their splines.

    Shapes: images (batch, channels, height, width), of dtype uint8, to which uniform noise is
    added, or as `images.dequantize` returns them, whose noise becomes :math:`u`; labels
    (batch,), for a class-conditional flow; bounds (batch,).

    Raises:
        TypeError: `flow` is no model of images, or a classifier.
        ValueError: a flow without `image_shape`; fewer than one layer; an image that is not
            divisible into patches.

    References:
        Ho et al., Flow++, 2019 (https://arxiv.org/abs/1902.00275)

    Example:
        >>> flow = mb.MixerFlow((1, 8, 8), 2, num_layers=2, hidden_features=16)
        >>> model = VariationalDequantization(flow, hidden_features=16)
        >>> x = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
        >>> model.log_prob(x).shape
        torch.Size([5])
        >>> loss = model.loss(mb.images.dequantize(x))
    """

    def __init__(
        self,
        flow: nf.NormalizingFlow | nf.MultiscaleFlow | DensityModel,
        *,
        image_shape: Sequence[int] | None = None,
        patch_size: int | Sequence[int] = 4,
        num_layers: int = 2,
        hidden_features: int = 64,
        num_bins: int = 4,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        density = as_density_model(flow)
        if density.density is not density:
            raise TypeError(
                f"{name}: flow must be a model of images alone, got {type(flow).__name__}"
            )
        shape = image_shape or density.image_shape
        if shape is None:
            raise ValueError(
                f"{name}: {type(flow).__name__} does not say of what shape its images are; "
                "pass image_shape, (channels, height, width)"
            )
        if num_layers < 1:
            raise ValueError(f"{name}: num_layers must be at least 1, got {num_layers}")
        self.flow = flow
        self.num_classes = density.num_classes
        self.patchify = Patchify(shape, patch_size)
        self.image_shape = self.patchify.image_shape
        height, width = self.patchify.patch_size
        self.noise_flow = Chain(
            [
                MatrixCoupling(
                    (self.image_shape[1] // height, self.image_shape[2] // width),
                    self.patchify.features,
                    RationalQuadratic(num_bins, bound=1.0),
                    net=partial(ImageConditioner, hidden_features=hidden_features),
                    context_features=self.patchify.num_patches * self.patchify.features,
                    reverse=layer % 2 == 1,
                )
                for layer in range(num_layers)
            ]
        )

    def __repr__(self) -> str:
        return describe(self)

    @property
    def density(self) -> Any:
        """The flow, which samples, inverts and embeds images."""
        return as_density_model(self.flow)

    @property
    def label_range(self) -> range | None:
        """The labels that the flow takes."""
        return self.density.label_range

    def dequantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images with learned noise, and the log-determinant (batch,) of that noise.

        Args:
            x: integer images, or such with uniform noise, see the shapes of the class.
        """
        if x.dtype == torch.uint8:
            like = next(self.noise_flow.parameters()).dtype
            x = dequantize(x, dtype=torch.float64 if like == torch.float64 else torch.float32)
        levels, noise = levels_and_noise(x)
        # Inputs of the net are of the scale of [-1, 1).
        image, _ = self.patchify.inverse(levels / 128 - 1)
        matrix, _ = self.patchify.inverse(2 * noise - 1)
        moved, log_det = self.noise_flow(matrix, image.flatten(1))
        noise = (self.patchify(moved)[0] + 1) / 2
        return (levels + noise) / 128 - 1, log_det

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """A bound (batch,) from below, by one sample of noise, of log-probabilities in nats.

        It is on the scale of densities in [-1, 1), as log-densities are elsewhere; see
        `images.bits_per_dim`.
        """
        x, log_det = self.dequantize(x)
        return self.density.log_prob(x, *(() if labels is None else (labels,))) + log_det

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Samples of the flow, see there; `images.quantize` makes them integer images."""
        return self.density.sample(*args, **kwargs)

    def embed(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents of images under the flow, see there."""
        return self.density.embed(x, *(() if labels is None else (labels,)))
