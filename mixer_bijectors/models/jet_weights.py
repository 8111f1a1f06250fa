"""The layout of the weights of Jet's PyTorch port, github.com/btrude/jet-pytorch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.matrix_coupling import MatrixCoupling
from ..layers.matrix_halves import PatchHalves
from ..layers.patch_grid import Patchify

__all__ = ["read_sizes", "read_weights"]

# Modules of a layer of the Transformer, and the names of the port before `weight` and `bias`.
_PARTS = {
    "attention.norm": "ln1.",
    "attention.qkv": "mha.in_proj_",
    "attention.out": "mha.out_proj.",
    "mlp.0": "ln2.",
    "mlp.1": "mlp.in_proj.",
    "mlp.3": "mlp.out_proj.",
}


def read_sizes(weights: Any) -> dict[str, int]:
    """The arguments of `Jet` that the weights determine, all of which must be there."""
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise TypeError(
            "Jet.from_reference: expected a state_dict, tensors by name, or the path of one; "
            "of a checkpoint hand over the entry 'model'"
        )
    num_layers = 1 + _last(weights, "blocks.")
    depth = 1 + _last(weights, "blocks.0.dnn.encoder.blocks.")
    wanted = {"channel_projections", "spatial_projections"} | {
        f"blocks.{index}.dnn.{name}"
        for index in range(num_layers)
        for name in _names(depth).values()
    }
    wrong = sorted(wanted ^ weights.keys())
    if wrong:
        raise ValueError(
            f"Jet.from_reference: these are not the weights of a Jet of {num_layers} couplings "
            f"of {depth} layers; missing or unexpected: {', '.join(wrong[:3])}"
        )
    return {
        "num_layers": num_layers,
        "layers_per_coupling": depth,
        "channels": len(weights["blocks.0.dnn.init_proj.weight"]),
    }


def read_weights(
    weights: Mapping[str, Tensor],
    patchify: Patchify,
    couplings: Sequence[MatrixCoupling],
    depth: int,
) -> Iterator[dict[str, Tensor]]:
    """The state_dict of each coupling and of the order of its features.

    Args:
        weights: those of the port.
        patchify: the grid of the model.
        couplings: those of the model, from data to latent.
        depth: layers of each Transformer.
    """
    over_features = iter(weights["channel_projections"])
    over_patches = iter(weights["spatial_projections"])
    counts = [len(weights[f"{axis}_projections"]) for axis in ("channel", "spatial")]
    if counts != [len(couplings) - len(couplings) // 5, len(couplings) // 5]:
        raise ValueError(
            "Jet.from_reference: expected four couplings over features to one over patches, "
            f"got {counts[0]} to {counts[1]}"
        )
    size = (weights["blocks.0.dnn.pos_emb"].shape[1], weights["channel_projections"].shape[1])
    if size != (patchify.num_patches, patchify.features):
        raise ValueError(
            f"Jet.from_reference: the weights are for {size[0]} patches of {size[1]} features, "
            f"but image_shape {patchify.image_shape} and patch_size {patchify.patch_size} give "
            f"{patchify.num_patches} of {patchify.features}"
        )
    order = _pixels_first(patchify).to(weights["channel_projections"])
    for index, coupling in enumerate(couplings):
        prefix = "flow.net."
        state = {"order": order}
        if isinstance(coupling.halves, PatchHalves):
            _check_mask(next(over_patches), coupling, coupling.halves)
            prefix += "net."
        else:
            state["order"] = order @ next(over_features)
        for name, port in _names(depth).items():
            value = weights[f"blocks.{index}.dnn.{port}"]
            if port == "pos_emb":
                value = value.squeeze(0)
            elif port.startswith("final_proj"):
                value = torch.cat(value.chunk(2)[::-1])  # shifts come first there
            state[prefix + name] = value
        yield state


def _names(depth: int) -> dict[str, str]:
    """The names of a Transformer's weights, and those of the port."""
    modules = {"initial": "init_proj.", "norm": "encoder.ln.", "final": "final_proj."}
    for layer in range(depth):
        modules |= {
            f"layers.{layer}.{name}": f"encoder.blocks.{layer}.{port}"
            for name, port in _PARTS.items()
        }
    return {"positions": "pos_emb"} | {
        f"{name}.{kind}": f"{port}{kind}"
        for name, port in modules.items()
        for kind in ("weight", "bias")
    }


def _last(weights: Mapping[str, Tensor], prefix: str) -> int:
    """The largest number that follows a prefix, 0 if there is none."""
    numbers = (key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix))
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _pixels_first(patchify: Patchify) -> Tensor:
    """The matrix that brings features to the order (row, column, channel) of the port."""
    channels, pixels = patchify.image_shape[0], math.prod(patchify.patch_size)
    index = torch.arange(channels * pixels).view(channels, pixels).T.flatten()
    return torch.eye(channels * pixels)[:, index]


def _check_mask(projection: Tensor, coupling: MatrixCoupling, halves: PatchHalves) -> None:
    """Refuse patches in another order than those that stay and then those that do not."""
    parts = halves.split(torch.arange(math.prod(halves.grid)).view(1, -1, 1))
    order = torch.cat(parts[::-1] if coupling.reverse else parts, dim=1).flatten()
    if not torch.equal(projection.argmax(0).cpu(), order):
        raise ValueError(
            "Jet.from_reference: expected the patches that stay in the order checkerboard, "
            f"columns, rows, and each of them reversed; one that should be {halves.mask} is not"
        )
