"""Weights of TarFlow under the names of its authors' code, https://github.com/apple/ml-tarflow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import normflows as nf
import torch
from torch import Tensor

from ..layers.patch_grid import Patchify
from ..layers.transformer_autoregressive import TransformerAutoregressive

if TYPE_CHECKING:
    from .tarflow import TarFlow

__all__ = ["build_from_reference", "export_to_reference", "is_centred"]


def build_from_reference(
    model_class: type[TarFlow],
    state_dict: Mapping[str, Tensor] | str | os.PathLike[str],
    image_shape: Sequence[int],
    patch_size: int | Sequence[int],
    head_dim: int,
) -> TarFlow:
    """The model with the authors' weights, see `TarFlow.from_reference`."""
    weights = _read(state_dict)
    num_blocks, num_layers, conditional = _counts(weights)
    wanted = {"var"} | {
        f"blocks.{block}.{reference}"
        for block in range(num_blocks)
        for reference in _names(num_layers, conditional)
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
    model = model_class(
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
    for block, prefix, reverse in _blocks(model):
        for reference, name in _names(num_layers, conditional).items():
            value = weights[f"blocks.{block}.{reference}"]
            state[prefix + name] = _convert(reference, value, reverse)
    model.load_state_dict(state)
    return model


def export_to_reference(model: TarFlow) -> dict[str, Tensor]:
    """Copies of the weights under the authors' names, see `TarFlow.to_reference`."""
    state, blocks = model.state_dict(), _blocks(model)
    num_patches = model.latent_shape[0]
    if len(model.flows) != len(blocks) + 1:
        raise ValueError("TarFlow.to_reference: the authors' code has no mixer")
    if not is_centred(model.q0):
        raise ValueError(
            "TarFlow.to_reference: the authors' code has no base but a Gaussian of mean "
            "zero; let q0 be the DiagGaussian that TarFlow builds, set q0.loc to zero and "
            "q0.temperature to None"
        )
    weights = {"var": (2 * state["q0.log_scale"][0]).exp()}
    for block, prefix, reverse in blocks:
        net: Any = model.flows[len(blocks) - 1 - block].net
        names = _names(len(net.layers), bool(model.num_classes))
        for reference, name in names.items():
            value = _convert(reference, state[prefix + name], reverse)
            weights[f"blocks.{block}.{reference}"] = value.clone()
        mask = weights["var"].new_ones(num_patches, num_patches).tril()
        weights[f"blocks.{block}.attn_mask"] = mask
    return weights


def is_centred(base: Any) -> bool:
    """Whether a base is a Gaussian of mean zero, without a temperature."""
    return bool(
        type(base) is nf.distributions.DiagGaussian
        and base.temperature is None
        and (base.loc.is_meta or not base.loc.any())
    )


def _read(state_dict: Mapping[str, Tensor] | str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of a state_dict or of a checkpoint, without the masks of attention."""
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
    return {key: value for key, value in loaded.items() if not key.endswith(".attn_mask")}


def _counts(weights: dict[str, Tensor]) -> tuple[int, int, bool]:
    """The number of blocks, that of the layers of each, and whether there are classes."""
    parts = [key.split(".") for key in weights]
    blocks = [int(p[1]) for p in parts if p[0] == "blocks" and p[1:2] and p[1].isdigit()]
    first = ["blocks", "0", "attn_blocks"]
    layers = [int(p[3]) for p in parts if p[:3] == first and p[3:4] and p[3].isdigit()]
    conditional = "blocks.0.class_embed" in weights
    return max(blocks, default=0) + 1, max(layers, default=0) + 1, conditional


def _blocks(model: TarFlow) -> list[tuple[int, str, bool]]:
    """Number from the data, prefix in the state_dict, and order, of each Transformer."""
    nets = [
        (f"flows.{index}.net.", flow.reverse)
        for index, flow in enumerate(model.flows)
        if isinstance(flow, TransformerAutoregressive)
    ]
    return [(len(nets) - 1 - index, *net) for index, net in enumerate(nets)]


def _names(num_layers: int, conditional: bool) -> dict[str, str]:
    """Names of the weights of a block in this library, by those in the authors' code."""
    names = {"pos_embed": "positions"}
    if conditional:
        names["class_embed"] = "context"
    modules = {"proj_in": "initial", "proj_out": "final"}
    for index in range(num_layers):
        reference, layer = f"attn_blocks.{index}", f"layers.{index}"
        modules |= {
            f"{reference}.attention.norm": f"{layer}.attention.norm",
            f"{reference}.attention.qkv": f"{layer}.attention.qkv",
            f"{reference}.attention.proj": f"{layer}.attention.out",
            f"{reference}.mlp.norm": f"{layer}.mlp.0",
            f"{reference}.mlp.main.0": f"{layer}.mlp.1",
            f"{reference}.mlp.main.2": f"{layer}.mlp.3",
        }
    for reference, name in modules.items():
        for kind in ("weight", "bias"):
            names[f"{reference}.{kind}"] = f"{name}.{kind}"
    return names


def _convert(reference: str, value: Tensor, reverse: bool) -> Tensor:
    """A weight of the authors' code for this library, or the other way round.

    Their positions are in the order of the image, here in that of reading; their embeddings of
    classes have an axis of size one.
    """
    if reference == "pos_embed" and reverse:
        return value.flip(0)
    if reference == "class_embed":
        return value.squeeze(1) if value.dim() == 3 else value.unsqueeze(1)
    return value


def _list(keys: set[str]) -> str:
    shown = sorted(keys)[:3]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more or "none"
