"""A MixerFlow with Transformers on its latents, see `presets`."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from .mixerflow import MixerFlow
from .tarflow import TarFlow

__all__ = ["attention_hybrid"]


def attention_hybrid(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    channels: int = 64,
    num_blocks: int = 1,
    layers_per_block: int = 1,
    head_dim: int = 64,
    num_classes: int = 0,
    mixer: Mapping[str, Any] | None = None,
    **former: Any,
) -> TarFlow:
    """A MixerFlow, and on its latents the Transformers of a TarFlow.

    The mixing layers come next to the data: they are cheap and see the whole image, and leave
    the attention what they cannot model. Densities take one pass, samples are those of TarFlow.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        num_layers: mixing layers.
        channels: width of the Transformers.
        num_blocks: number of Transformers, as in `TarFlow`.
        layers_per_block: layers of each.
        head_dim: width of an attention head.
        num_classes: number of classes; 0 makes an unconditional model.
        mixer: other options of `MixerFlow`, all but `base`; its `num_blocks` is that of the
            couplings' nets.
        former: the options of `mixer` by themselves, until 0.3.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777), and
        Zhai et al., Normalizing flows are capable generative models, 2024
        (https://arxiv.org/abs/2412.06329)

    Example:
        >>> options = {"hidden_features": 16, "num_blocks": 1}
        >>> model = mb.presets.attention_hybrid((3, 16, 16), num_layers=2, mixer=options)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    # A config of a former run may spell out the defaults of MixerFlow.
    defaults = {n: p.default for n, p in inspect.signature(MixerFlow).parameters.items()}
    if given := [name for name, value in former.items() if value != defaults.get(name)]:
        warnings.warn(
            f"presets.attention_hybrid: {given[0]} is an option of MixerFlow; pass those as "
            "mixer={...}",
            DeprecationWarning,
            stacklevel=2,
        )
    former = {**former, **(mixer or {})}
    shape = (image_shape, patch_size)
    return TarFlow(
        *shape,
        channels=channels,
        num_blocks=num_blocks,
        layers_per_block=layers_per_block,
        head_dim=head_dim,
        num_classes=num_classes,
        mixer=MixerFlow(*shape, num_layers, num_classes=num_classes, **former),
    )
