"""TarFlow: Transformers that read the patches in opposite orders."""

import os
from collections.abc import Mapping, Sequence

import normflows as nf
from torch import Tensor, nn

from .._checks import check_size
from ..flow import Flow
from ..layers.patch_grid import Patchify
from ..layers.transformer_autoregressive import TransformerAutoregressive
from .former_options import accept_former_options
from .image_flow import ImageFlow
from .mixerflow import MixerFlow
from .tarflow_weights import build_from_reference, export_to_reference, is_centred

__all__ = ["TarFlow"]


class TarFlow(ImageFlow):
    r"""Density of images by Transformers that read the patches in opposite orders in turn.

    From data to latent: the mixer matrix of patches x features, then `num_blocks` layers of
    `TransformerAutoregressive`, the first of which reads the patches from first to last. The
    whole starts as the identity.

    It is a `normflows.NormalizingFlow`: `log_prob`, `sample`, `forward`, `inverse`,
    `forward_and_log_det`, `inverse_and_log_det` and `forward_kld` mean what they mean there,
    take `labels` when the model is class-conditional, and keep float64. A label of -1 stands
    for the null class. `sample`, `forward` and `forward_and_log_det` take the options `method`
    and `guidance` of `TransformerAutoregressive`.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        channels: width of the Transformers, a multiple of `head_dim`.
        num_blocks: number of Transformers.
        layers_per_block: layers of each.
        head_dim: width of an attention head.
        expansion: width of the perceptrons' hidden layer, in multiples of `channels`.
        num_classes: number of classes; 0 makes an unconditional model.
        volume_preserving: Transformers shift only, and the base learns a scale for each latent,
            with mean zero.
        checkpointing: in backpropagation, recompute each layer rather than keep what it
            computed: less memory for a third more time.
        mixer: a `MixerFlow` of the same images, patches and classes, without a base of its own,
            whose layers come between the data and the Transformers.

    Shapes: images (batch, channels, height, width), by convention in [-1, 1), labels (batch,),
    latents (batch, num_patches, features), log-probabilities (batch,).

    Raises:
        TypeError: images that are not floating point or of higher precision than the model,
            labels that are not a tensor of integers, a mixer that is not a `MixerFlow`.
        ValueError: an image not divisible into patches or with a single one; a count below 1;
            `channels` that heads do not divide; a mixer of other images or with another base
            (on construction); images of another shape; labels missing, out of range (looked at
            on the CPU only) or given to an unconditional model; a temperature not positive; an
            unknown method; guidance without anything to guide by.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024
        (https://arxiv.org/abs/2412.06329)

    Example:
        >>> model = TarFlow(
        ...     (1, 8, 8), 2, channels=64, num_blocks=2, layers_per_block=1, num_classes=10
        ... )
        >>> x, labels = 2 * torch.rand(5, 1, 8, 8) - 1, torch.arange(5)
        >>> model.log_prob(x, labels).shape
        torch.Size([5])
        >>> images, log_prob = model.sample(5, labels, guidance=1.0)
        >>> images.shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        *,
        channels: int,
        num_blocks: int,
        layers_per_block: int,
        head_dim: int = 64,
        expansion: int = 4,
        num_classes: int = 0,
        volume_preserving: bool = False,
        checkpointing: bool = False,
        mixer: MixerFlow | None = None,
    ) -> None:
        patchify = Patchify(image_shape, patch_size)
        check_size("TarFlow", "num_blocks", num_blocks, least=1)
        blocks = [
            TransformerAutoregressive(
                patchify.num_patches,
                patchify.features,
                channels=channels,
                num_layers=layers_per_block,
                head_dim=head_dim,
                expansion=expansion,
                num_classes=num_classes,
                reverse=index % 2 == 1,
                volume_preserving=volume_preserving,
            )
            for index in range(num_blocks)
        ]
        for block in blocks:
            block.net.checkpointing = checkpointing
        geometry: list[Flow] = [patchify]
        if mixer is not None:
            if not isinstance(mixer, MixerFlow):
                raise TypeError(
                    f"TarFlow: mixer must be a MixerFlow, got {type(mixer).__name__}"
                )
            if [*mixer.q0.parameters()] or not is_centred(mixer.q0):
                raise ValueError(
                    "TarFlow: the mixer has a base of its own, which would be left out; build "
                    "it without base"
                )
            wanted = (patchify.image_shape, patchify.patch_size, num_classes)
            given = (mixer.image_shape, mixer.patch_size, mixer.num_classes)
            if given != wanted:
                raise ValueError(
                    "TarFlow: the mixer must be of the same image_shape, patch_size and "
                    f"num_classes, {wanted}, got {given}"
                )
            geometry = list(mixer.flows)
        latent_shape = (patchify.num_patches, patchify.features)
        base = nf.distributions.DiagGaussian(latent_shape, trainable=False)
        if volume_preserving:
            log_scale = base.log_scale
            del base.log_scale
            base.log_scale = nn.Parameter(log_scale)
        # normflows lists flows from latent to data.
        super().__init__(
            image_shape,
            patch_size,
            [*blocks[::-1], *geometry],
            num_classes=num_classes,
            base=base,
        )

    sample = accept_former_options(ImageFlow.sample)

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor] | str | os.PathLike[str],
        image_shape: Sequence[int],
        patch_size: int | Sequence[int],
        head_dim: int = 64,
    ) -> "TarFlow":
        """The model with weights that were trained with the code of the paper's authors.

        That code is https://github.com/apple/ml-tarflow. Widths and counts are read off the
        weights; the numbers that the model computes are the same.

        Args:
            state_dict: the weights, or the path of a checkpoint, of which only tensors are
                read.
            image_shape: (channels, height, width).
            patch_size: side of the square patches in pixels, or (height, width).
            head_dim: width of an attention head, which the weights do not determine; 64 in all
                models of the authors.

        Raises:
            TypeError: what holds anything but tensors by name.
            ValueError: keys that are missing or unexpected; weights for images or patches of
                another size, or of a shape that does not fit the others.
        """
        return build_from_reference(cls, state_dict, image_shape, patch_size, head_dim)

    def to_reference(self) -> dict[str, Tensor]:
        """Copies of the weights under the names of the authors' code, see `from_reference`.

        That code builds models with heads of width 64, of square images and patches.

        Raises:
            ValueError: the model has a mixer, or another base than a Gaussian of mean zero
                without a temperature, which are not in that code.
        """
        return export_to_reference(self)
