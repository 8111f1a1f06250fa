"""Jet, couplings with Vision Transformers."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import normflows as nf
import torch
from torch import Tensor, nn

from .._checks import check_size
from ..bijection import Bijection
from ..declarations import context_features
from ..flow import Flow, apply_flow
from ..layers.matrix_coupling import MatrixCoupling
from ..layers.patch_grid import Patchify
from ..nets import Transformer
from ..nets._inputs import patch_count
from ..univariate import SigmoidAffine
from .image_flow import ImageFlow
from .jet_weights import read_sizes, read_weights

__all__ = ["Jet"]

# Which patches stay, in one after the other of the couplings over patches.
_OVER_PATCHES: list[dict[str, Any]] = [
    {"axis": "patches", "mask": mask, "reverse": reverse}
    for mask in ("checkerboard", "columns", "rows")
    for reverse in (False, True)
]


class Jet(ImageFlow):
    r"""Density of images by couplings whose conditioners are Vision Transformers.

    From data to latent: the mixer matrix of patches x features, then `num_layers` couplings. Of
    five in a row, four transform a random half of the features of every patch, and the fifth
    transforms every other patch, on a checkerboard, in columns or in rows. It starts as the
    identity; densities and samples take one pass. Methods are those of `MixerFlow`.

    Args:
        image_shape: (channels, height, width).
        patch_size: side of the square patches in pixels, or (height, width).
        num_layers: number of couplings.
        channels: width of the Transformers, a multiple of `head_dim`.
        layers_per_coupling: layers of attention and perceptron in each Transformer.
        head_dim: width of an attention head.
        num_classes: number of classes; 0 makes an unconditional model.
        base: distribution of the latents of shape (num_patches, features), by default a
            standard normal.

    Shapes: images (batch, channels, height, width), by convention in [-1, 1), labels (batch,),
    latents (batch, num_patches, features), log-probabilities (batch,).

    Raises:
        ValueError: an image that is not divisible into patches; an odd number of features, or
            of rows or columns that a mask halves; no layer; `channels` that heads do not
            divide.

    References:
        Kolesnikov et al., Jet: a modern Transformer-based normalizing flow, 2024
        (https://arxiv.org/abs/2412.15129)

    Example:
        >>> model = Jet((3, 16, 16), 4, num_layers=5, channels=64, layers_per_coupling=1)
        >>> model.log_prob(2 * torch.rand(5, 3, 16, 16) - 1).shape
        torch.Size([5])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 64, 64),
        patch_size: int | Sequence[int] = 4,
        *,
        num_layers: int = 32,
        channels: int = 512,
        layers_per_coupling: int = 2,
        head_dim: int = 64,
        num_classes: int = 0,
        base: nf.distributions.BaseDistribution | None = None,
    ) -> None:
        check_size("Jet", "num_layers", num_layers, least=1)
        patchify = Patchify(image_shape, patch_size)
        if patchify.features % 2:
            raise ValueError(
                f"Jet: needs an even number of features in a patch, got {patchify.features}"
            )
        options: dict[str, Any] = {
            "channels": channels,
            "num_layers": layers_per_coupling,
            "head_dim": head_dim,
        }
        layers: list[Flow] = [patchify]
        for index in range(num_layers):
            turn, place = divmod(index, 5)
            over_patches = place == 4
            net = _SplitPatches if over_patches else Transformer
            coupling = MatrixCoupling(
                patchify.grid,
                patchify.features,
                SigmoidAffine(),
                net=partial(net, **options),
                context_features=num_classes,
                **(_OVER_PATCHES[turn % len(_OVER_PATCHES)] if over_patches else {}),
            )
            layers.append(_Reordered(coupling, shuffled=not over_patches))
        super().__init__(
            image_shape, patch_size, layers[::-1], num_classes=num_classes, base=base
        )

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor] | str | os.PathLike[str],
        image_shape: Sequence[int] = (3, 64, 64),
        patch_size: int | Sequence[int] = 4,
        head_dim: int = 64,
    ) -> "Jet":
        """The model of weights under the names of Jet's PyTorch port, jet-pytorch.

        Args:
            state_dict: tensors by name, which a checkpoint of that code has as its entry
                'model', or the path of a file of them, of which only tensors are read.
            image_shape: (channels, height, width), which the weights do not determine.
            patch_size: side of the patches.
            head_dim: width of an attention head, `block_width` over `num_heads`.

        Raises:
            TypeError: something else than tensors by name.
            ValueError: keys that are missing or unexpected; weights for images or patches of
                another size, or of couplings in another order than four over features to one
                over patches.
        """
        loaded: Any = state_dict
        if isinstance(state_dict, str | os.PathLike):
            loaded = torch.load(state_dict, map_location="cpu", weights_only=True)
        sizes = read_sizes(loaded)
        model = cls(image_shape, patch_size, head_dim=head_dim, **sizes)
        # normflows lists flows from latent to data.
        layers: list[Any] = list(model.flows[-2::-1])
        model.to(loaded["channel_projections"].dtype)
        states = read_weights(
            loaded,
            Patchify(image_shape, patch_size),
            [layer.flow for layer in layers],
            sizes["layers_per_coupling"],
        )
        for layer, state in zip(layers, states):
            layer.load_state_dict(state)
        return model


class _Reordered(Bijection):
    """A coupling on the features of all patches in another order.

    The order is a matrix of zeros and ones, whose columns are the features in the order of the
    coupling: averages of models would break indices.
    """

    holds_flows = True
    order: Tensor

    def __init__(self, flow: MatrixCoupling, *, shuffled: bool) -> None:
        super().__init__(flow.event_shape, context_features=context_features(flow))
        self.flow = flow
        order = torch.eye(flow.features)
        self.register_buffer(
            "order", order[:, torch.randperm(flow.features)] if shuffled else order
        )

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = x.index_select(2, self.order.argmax(0))
        y, log_det = apply_flow(self.flow, x, context, inverse=inverse)
        return y.index_select(2, self.order.argmax(1)), log_det


class _SplitPatches(nn.Module):
    """A Transformer that sees each patch of a half as two: as many as in the whole matrix."""

    def __init__(
        self,
        num_patches: int | Sequence[int],
        in_features: int,
        out_features: int,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_params = out_features // in_features
        self.net = Transformer(
            2 * patch_count("Jet", num_patches), in_features // 2, out_features // 2, **options
        )

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        params = self.net(x.unflatten(2, (2, -1)).flatten(1, 2), *context)
        params = params.unflatten(2, (self.num_params, -1)).unflatten(1, (-1, 2))
        return params.transpose(2, 3).flatten(2)
