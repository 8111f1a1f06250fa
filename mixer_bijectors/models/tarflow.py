"""TarFlow."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import normflows as nf
import torch
from torch import Tensor, nn

from .._dependencies import uncompiled
from ..flow import Flow, apply_flow
from ..layers.patch_grid import Patchify
from ..layers.transformer_autoregressive import Guidance, TransformerAutoregressive
from .image_flow import ImageFlow
from .mixerflow import MixerFlow

__all__ = ["TarFlow"]

_GAUSSIAN = nf.distributions.DiagGaussian


class TarFlow(ImageFlow):
    r"""Density of images by Transformers that read the patches in opposite orders in turn.

    From data to latent: the mixer matrix of patches x features, then `num_blocks` layers of
    `TransformerAutoregressive`, the first of which reads the patches from first to last. The
    whole starts as the identity.

    It is a `normflows.NormalizingFlow`: `log_prob`, `sample`, `forward`, `inverse`,
    `forward_and_log_det`, `inverse_and_log_det` and `forward_kld` mean what they mean there,
    take `labels` when the model is class-conditional, and keep float64. A label of -1 stands
    for the null class.

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
        if num_blocks < 1:
            raise ValueError(f"TarFlow: num_blocks must be at least 1, got {num_blocks}")
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
            if [*mixer.q0.parameters()] or not _is_centred(mixer.q0):
                raise ValueError(
                    "TarFlow: the mixer has a base of its own, which would be left out; build "
                    "it without base"
                )
            ours = (patchify.image_shape, patchify.patch_size, num_classes)
            theirs = (mixer.image_shape, mixer.patch_size, mixer.num_classes)
            if ours != theirs:
                raise ValueError(
                    "TarFlow: the mixer must be of the same image_shape, patch_size and "
                    f"num_classes, {ours}, got {theirs}"
                )
            geometry = list(mixer.flows)
        latent_shape = (patchify.num_patches, patchify.features)
        base = _GAUSSIAN(latent_shape, trainable=False)
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

    def sample(
        self,
        num_samples: int = 1,
        labels: Tensor | None = None,
        guidance: float = 0.0,
        guide: str = "scale+shift",
        annealed: bool = False,
        temperature: float = 1.0,
        attention_temperature: float = 1.0,
        method: str = "auto",
        generator: torch.Generator | None = None,
        *,
        trace: bool = False,
    ) -> Any:
        """Images (num_samples, channels, height, width) and their log-densities (num_samples,).

        The log-densities are those under the guided and tempered model.

        Args:
            num_samples: number of images.
            labels: their classes, for a class-conditional model.
            guidance: weight of the guidance, see `Guidance`; 0 for none.
            guide: 'scale+shift', 'scale' or 'shift', what is guided.
            annealed: let the weight grow linearly over the patches.
            temperature: scales the standard deviation of the base, and multiplies the
                temperature that the base is set to.
            attention_temperature: divides the attention's scores of the prediction that
                guidance pushes away from.
            method: 'sequential', 'parallel' or 'auto', see `TransformerAutoregressive`.
            generator: source of random numbers; by default the global one.
            trace: return also a list of images, the latents and what comes out of each flow.
        """
        z, log_prob = self._draw(num_samples, labels, temperature, generator)
        guide_by = Guidance(guidance, guide, annealed, attention_temperature)
        x, log_det, states = self._run(z, labels, method, guide_by)
        if trace:
            patchify = Patchify(self.image_shape, self.patch_size)
            images = [s if s.dim() == 4 else patchify.forward(s)[0] for s in states]
            return x, log_prob - log_det, images
        return x, log_prob - log_det

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        method: str = "auto",
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Images (batch, channels, height, width) of latents (batch, num_patches, features)."""
        return self._run(z, labels, method, guidance)[0]

    def forward_and_log_det(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        method: str = "auto",
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images of latents, and the log-determinant (batch,) of that map."""
        x, log_det, _ = self._run(z, labels, method, guidance)
        return x, log_det

    def _run(
        self, z: Tensor, labels: Tensor | None, method: str, guidance: Guidance | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Images, log_det, and the latents with what comes out of each flow."""
        state, context = self._read_latents(z, labels)
        total = z.new_zeros(z.shape[:1])
        states = [state]
        for flow in self.flows:
            if isinstance(uncompiled(flow), TransformerAutoregressive):
                state, log_det = flow(state, context, method=method, guidance=guidance)
            else:
                state, log_det = apply_flow(flow, state, context)
            total = total + log_det
            states.append(state.contiguous())
        return states[-1], total, states

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
            head_dim: width of an attention head, which the weights do not tell; 64 in all
                models of the authors.

        Raises:
            TypeError: what holds anything but tensors by name.
            ValueError: keys that are missing or unexpected; weights for images or patches of
                another size, or of a shape that does not fit the others.
        """
        loaded: Any = state_dict
        if isinstance(state_dict, str | os.PathLike):
            loaded = torch.load(state_dict, map_location="cpu", weights_only=True)
        if not isinstance(loaded, Mapping) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
        ):
            raise TypeError(
                "TarFlow.from_reference: expected a state_dict, tensors by name, or the path "
                "of one; hand over the entry that holds it if there are others beside"
            )
        weights = {k: v for k, v in loaded.items() if not k.endswith(".attn_mask")}
        blocks = {int(k.split(".")[1]) for k in weights if _is_numbered(k, "blocks")}
        layers = {
            int(k.split(".")[3])
            for k in weights
            if k.startswith("blocks.0.attn_blocks.") and k.split(".")[3].isdigit()
        }
        num_blocks, num_layers = max(blocks, default=0) + 1, max(layers, default=0) + 1
        conditional = "blocks.0.class_embed" in weights
        wanted = {"var"} | {
            f"blocks.{block}.{theirs}"
            for block in range(num_blocks)
            for theirs in _names(num_layers, conditional)
        }
        missing, unexpected = wanted - weights.keys(), weights.keys() - wanted
        if missing or unexpected:
            raise ValueError(
                "TarFlow.from_reference: these are not the weights of a TarFlow of "
                f"{num_blocks} blocks of {num_layers} layers; missing: {_list(missing)}; "
                f"unexpected: {_list(unexpected)}"
            )
        patchify = Patchify(image_shape, patch_size)
        channels, features = weights["blocks.0.proj_in.weight"].shape[:2]
        num_patches = len(weights["blocks.0.pos_embed"])
        if (num_patches, features) != (patchify.num_patches, patchify.features):
            raise ValueError(
                f"TarFlow.from_reference: the weights are for {num_patches} patches of "
                f"{features} features, but image_shape {patchify.image_shape} and patch_size "
                f"{patchify.patch_size} give {patchify.num_patches} of {patchify.features}"
            )
        model = cls(
            image_shape,
            patch_size,
            channels=channels,
            num_blocks=num_blocks,
            layers_per_block=num_layers,
            head_dim=head_dim,
            expansion=len(weights["blocks.0.attn_blocks.0.mlp.main.0.weight"]) // channels,
            num_classes=len(weights["blocks.0.class_embed"]) if conditional else 0,
            volume_preserving=len(weights["blocks.0.proj_out.weight"]) == features,
        )
        model.to(weights["blocks.0.proj_in.weight"].dtype)
        wanted_shapes = {key: value.shape for key, value in model.to_reference().items()}
        for key, value in weights.items():
            if value.shape != wanted_shapes[key]:
                raise ValueError(
                    f"TarFlow.from_reference: {key} should have the shape "
                    f"{tuple(wanted_shapes[key])} beside the other weights, got "
                    f"{tuple(value.shape)}"
                )
        state = {"q0.loc": model.q0.loc, "q0.log_scale": weights["var"].log().unsqueeze(0) / 2}
        for block, prefix, reverse in model._blocks():
            for theirs, ours in _names(num_layers, conditional).items():
                value = weights[f"blocks.{block}.{theirs}"]
                state[prefix + ours] = _convert(theirs, value, reverse)
        model.load_state_dict(state)
        return model

    def to_reference(self) -> dict[str, Tensor]:
        """Copies of the weights under the names of the authors' code, see `from_reference`.

        That code builds models with heads of width 64, of square images and patches.

        Raises:
            ValueError: the model has a mixer, or another base than a Gaussian of mean zero
                without a temperature, which are not in that code.
        """
        state = self.state_dict()
        num_patches = self.latent_shape[0]
        if len(self.flows) != len(self._blocks()) + 1:
            raise ValueError("TarFlow.to_reference: the authors' code has no mixer")
        if not _is_centred(self.q0):
            raise ValueError(
                "TarFlow.to_reference: the authors' code has no base but a Gaussian of mean "
                "zero; let q0 be the DiagGaussian that TarFlow builds, set q0.loc to zero and "
                "q0.temperature to None"
            )
        weights = {"var": (2 * state["q0.log_scale"][0]).exp()}
        for block, prefix, reverse in self._blocks():
            net: Any = self.flows[len(self._blocks()) - 1 - block].net
            names = _names(len(net.layers), bool(self.num_classes))
            for theirs, ours in names.items():
                value = _convert(theirs, state[prefix + ours], reverse)
                weights[f"blocks.{block}.{theirs}"] = value.clone()
            mask = weights["var"].new_ones(num_patches, num_patches).tril()
            weights[f"blocks.{block}.attn_mask"] = mask
        return weights

    def _blocks(self) -> list[tuple[int, str, bool]]:
        """Number from the data, prefix in the state_dict, and order, of each Transformer."""
        nets = [
            (f"flows.{index}.net.", flow.reverse)
            for index, flow in enumerate(self.flows)
            if isinstance(flow, TransformerAutoregressive)
        ]
        return [(len(nets) - 1 - index, *net) for index, net in enumerate(nets)]


def _is_centred(base: Any) -> bool:
    """Whether a base is a Gaussian of mean zero, without a temperature."""
    return bool(
        type(base) is _GAUSSIAN
        and base.temperature is None
        and (base.loc.is_meta or not base.loc.any())
    )


def _is_numbered(key: str, name: str) -> bool:
    parts = key.split(".")
    return parts[0] == name and len(parts) > 1 and parts[1].isdigit()


def _names(num_layers: int, conditional: bool) -> dict[str, str]:
    """The authors' names of a block's weights, and ours."""
    names = {"pos_embed": "positions"}
    if conditional:
        names["class_embed"] = "context"
    modules = {"proj_in": "initial", "proj_out": "final"}
    for layer in range(num_layers):
        theirs, ours = f"attn_blocks.{layer}", f"layers.{layer}"
        modules |= {
            f"{theirs}.attention.norm": f"{ours}.attention.norm",
            f"{theirs}.attention.qkv": f"{ours}.attention.qkv",
            f"{theirs}.attention.proj": f"{ours}.attention.out",
            f"{theirs}.mlp.norm": f"{ours}.mlp.0",
            f"{theirs}.mlp.main.0": f"{ours}.mlp.1",
            f"{theirs}.mlp.main.2": f"{ours}.mlp.3",
        }
    for theirs, ours in modules.items():
        for kind in ("weight", "bias"):
            names[f"{theirs}.{kind}"] = f"{ours}.{kind}"
    return names


def _convert(name: str, value: Tensor, reverse: bool) -> Tensor:
    """From either side to the other, whose positions are those of the image or of reading."""
    if name == "pos_embed" and reverse:
        return value.flip(0)
    if name == "class_embed":
        return value.squeeze(1) if value.dim() == 3 else value.unsqueeze(1)
    return value


def _list(keys: set[str]) -> str:
    shown = sorted(keys)[:3]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more or "none"
