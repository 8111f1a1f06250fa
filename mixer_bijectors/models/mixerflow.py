"""MixerFlow."""

from collections.abc import Callable, Sequence
from typing import Literal

import normflows as nf
from torch import nn

from .._checks import check_builder, check_size
from ..flow import Flow
from ..layers.lu_linear import LULinear
from ..layers.mixing import PixelMixing
from ..layers.mixing_layer import MixingLayer
from ..layers.patch_grid import Patchify
from ..layers.shift import CyclicShift, Shift
from ..running import reversible as make_reversible
from ..univariate import Affine, Univariate
from .image_flow import ImageFlow

__all__ = ["MixerFlow"]


class MixerFlow(ImageFlow):
    r"""Density of images by a flow that mixes features and patches in turn, as MLP-Mixer does.

    From data to latent: an invertible 1x1 map on the colour channels, the mixer matrix of
    patches x features, then `num_layers` layers. A layer is ActNorm, an LU linear map and two
    couplings, which transform one half each, over the features of every patch; then the same
    over the patches of every feature. Every `shift_every`-th layer runs inside a `Shift`, on a
    patch grid moved by half a patch. The whole starts as the identity, save for ActNorm.
    `presets.local` has other defaults, which learn photographs faster.

    It is a `normflows.NormalizingFlow`: `log_prob`, `sample`, `forward`, `inverse`,
    `forward_and_log_det`, `inverse_and_log_det` and `forward_kld` mean what they mean there,
    take `labels` when the model is class-conditional, and keep float64. A label of -1 stands
    for the null class.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        num_layers: number of mixing layers.
        shift_every: every how many layers the patch grid moves; 0 for never.
        shift: 'frame' to run every `shift_every`-th layer inside a `Shift`, as the paper does;
            'cyclic' to put a `CyclicShift` before it, so that the layers up to the next shift
            are on the moved grid too; None for no shifts.
        neighbourhood: side of the square of patches whose features the couplings over features
            read, an odd number; 1, as in the paper, for those of the same patch alone.
        window: side of the square windows of patches within which patches are mixed, which must
            fill the grid; None, as in the paper, for all patches of the image at once.
        hidden_features: width of the couplings' nets.
        num_blocks: residual blocks of the couplings' default nets.
        channel_flow: builds the flow over features in place of the two couplings, called with
            the number of features.
        patch_flow: builds the flow over patches in place of the two couplings, called with the
            number of patches, which is smaller in shifted layers.
        univariate: the couplings' elementwise bijection. The default scales by at most e in
            each of the 120 couplings of 30 layers; with a looser bound they explode within the
            first steps of training.
        net: the couplings' conditioner, see `Coupling`; with a neighbourhood, couplings over
            features put a convolution of the patches before it.
        num_classes: number of classes; 0 makes an unconditional model. Flows that
            `channel_flow` and `patch_flow` build get the labels, one-hot, as their context if
            they take one: build those of normflows with `context_features=num_classes`.
        reversible: train with memory that does not grow with `num_layers`, in about a third
            more time, see `ReversibleChain`; parameters and their names are the same.
        base: distribution of the latents of shape (num_patches, features), by default a
            standard normal. One whose `log_prob` and `forward` take `y` or `context`, such as
            `ClassCondDiagGaussian`, gets the labels: normflows' own as weights of the classes,
            one-hot or, for the null class, uniform, which is the Gaussian of the mean
            parameters; others integers as their `y`, and then there is no null class.

    Shapes: images (batch, channels, height, width), by convention in [-1, 1), labels (batch,),
    latents (batch, num_patches, features), log-probabilities (batch,).

    Raises:
        TypeError: images that are not floating point or of higher precision than the model,
            labels that are not a tensor of integers, a flow where a builder is expected.
        ValueError: an image not divisible into patches or with a single one (on construction),
            a negative count, another `shift`, an even `neighbourhood` or one beside
            `channel_flow`, windows that do not fill the grid (also the smaller one inside of a
            frame), a base of another shape than the latents or of other classes than the
            model, classes that nothing inside reads; images of another shape; a base that
            gives anything but one log-density for each image; labels missing, out of range
            (looked at on the CPU only) or given to an unconditional model; a temperature not
            positive.

    Warns:
        UserWarning: pixels far outside of [-1, 1), once (looked at on the CPU only).

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
        shift: Literal["frame", "cyclic"] | None = "frame",
        neighbourhood: int = 1,
        window: int | None = None,
        hidden_features: int = 128,
        num_blocks: int = 2,
        channel_flow: Callable[[int], Flow] | None = None,
        patch_flow: Callable[[int], Flow] | None = None,
        univariate: Univariate = Affine(max_log_scale=1.0),
        net: Callable[..., nn.Module] | None = None,
        num_classes: int = 0,
        reversible: bool = False,
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
            check_size("MixerFlow", name, count, least=0)
        if shift not in ("frame", "cyclic", None):
            raise ValueError(
                f"MixerFlow: shift must be 'frame', 'cyclic' or None, got {shift!r}"
            )

        def mixing_layer(patchify: Patchify) -> MixingLayer:
            sizes = ((patchify.num_patches, patch_flow), (patchify.features, channel_flow))
            if any(size < 2 and flow is None for size, flow in sizes):
                raise ValueError(
                    f"MixerFlow: couplings cannot mix the {patchify.num_patches} x "
                    f"{patchify.features} matrix of image {patchify.image_shape} and patch "
                    f"{patchify.patch_size}; change patch_size, or leave out shifted layers, "
                    "which have fewer patches, with shift_every=0"
                )
            return MixingLayer(
                patchify.grid,
                patchify.features,
                hidden_features=hidden_features,
                num_blocks=num_blocks,
                channel_flow=channel_flow,
                patch_flow=patch_flow,
                univariate=univariate,
                net=net,
                context_features=num_classes,
                neighbourhood=neighbourhood,
                window=window,
            )

        layers: list[Flow] = [PixelMixing(LULinear(image_shape[0])), patchify]
        for index in range(1, num_layers + 1):
            moves = shift_every and index % shift_every == 0
            if moves and shift == "frame":
                inner = Patchify(Shift.inner_shape(image_shape, patch_size), patch_size)
                layers.append(Shift(mixing_layer(inner), image_shape, patch_size))
                continue
            if moves and shift == "cyclic":
                layers.append(CyclicShift(image_shape, patch_size))
            layers.append(mixing_layer(patchify))
        # normflows lists flows from latent to data.
        super().__init__(
            image_shape, patch_size, layers[::-1], num_classes=num_classes, base=base
        )
        self.reversible = reversible
        if reversible:
            make_reversible(self)
