"""Transformers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partialmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .._checks import check_context, check_size
from ._inputs import patch_count

__all__ = ["CausalTransformer", "Transformer"]


class Transformer(nn.Module):
    r"""Transformer over patches: the output at each patch depends on all patches.

    A linear layer to `channels`, learned positions, `num_layers` pre-norm layers of attention
    and a perceptron with GELU, a last LayerNorm, as in a Vision Transformer, and a linear layer
    to `out_features` that starts at zero, so that the layer it conditions starts as the
    identity. A context is mapped to `channels` without bias and added to every patch: a one-hot
    context picks a class's embedding, a uniform one their mean.

    Args:
        num_patches: longest sequence, or the (rows, columns) of the grid of patches.
        in_features: size of a patch.
        out_features: size of the output for a patch.
        channels: width, a multiple of `head_dim`.
        num_layers: layers of attention and perceptron.
        head_dim: width of an attention head.
        expansion: width of the perceptrons' hidden layer, in multiples of `channels`.
        context_features: size of the context; 0 for none.
        causal: let a patch see only itself and those before it, without the last LayerNorm, as
            in TarFlow.

    Attributes:
        checkpointing: whether backpropagation recomputes each layer rather than keep what it
            computed, which saves memory for a third of the time; False by default.

    Shapes: (batch, patches, in_features) and (batch, context_features) in,
        (batch, patches, out_features) out.

    Raises:
        ValueError: a count below 1, or `channels` that heads do not divide; an input or a
            context of another shape, or a context that is missing.

    References:
        Vaswani et al., Attention is all you need, 2017 (https://arxiv.org/abs/1706.03762)

        Dosovitskiy et al., An image is worth 16x16 words, 2020
        (https://arxiv.org/abs/2010.11929)

    Example:
        >>> net = Transformer(16, 12, 24, channels=64)
        >>> net(torch.randn(5, 16, 12)).shape
        torch.Size([5, 16, 24])
    """

    def __init__(
        self,
        num_patches: int | Sequence[int],
        in_features: int,
        out_features: int,
        *,
        channels: int = 128,
        num_layers: int = 2,
        head_dim: int = 64,
        expansion: int = 4,
        context_features: int = 0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        num_patches = patch_count(name, num_patches)
        sizes = {
            "num_layers": num_layers,
            "head_dim": head_dim,
            "expansion": expansion,
            "in_features": in_features,
            "out_features": out_features,
        }
        for argument, size in sizes.items():
            check_size(name, argument, size, least=1)
        if channels < 1 or channels % head_dim:
            raise ValueError(
                f"{name}: channels must be a multiple of head_dim={head_dim}, got {channels}"
            )
        self.head_dim = head_dim
        self.causal = causal
        self.checkpointing = False
        self.initial = nn.Linear(in_features, channels)
        self.positions = nn.Parameter(0.01 * torch.randn(num_patches, channels))
        self.context = (
            nn.Parameter(0.01 * torch.randn(context_features, channels))
            if context_features
            else None
        )
        self.layers = nn.ModuleList(
            _Layer(channels, head_dim, expansion) for _ in range(num_layers)
        )
        self.norm = nn.Identity() if causal else nn.LayerNorm(channels)
        self.final = nn.Linear(channels, out_features)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        temperature: Tensor | float = 1.0,
    ) -> Tensor:
        """Outputs for each patch, (batch, patches, out_features)."""
        num_patches = len(self.positions)
        features = self.initial.in_features
        if x.dim() != 3 or x.shape[2] != features or x.shape[1] > num_patches:
            raise ValueError(
                f"{type(self).__name__}: expected shape (batch, up to {num_patches}, "
                f"{features}), got {tuple(x.shape)}"
            )
        if self.context is not None:
            context_features = len(self.context)
            check_context(type(self).__name__, context, x.shape[0], context_features)
        return self.read(x, self.offsets(context)[:, : x.shape[1]], temperature=temperature)

    def offsets(self, context: Tensor | None) -> Tensor:
        """Embeddings of positions and context, (1 or batch, patches, channels).

        They are added to the patches after the first linear layer.
        """
        positions = self.positions.unsqueeze(0)
        if self.context is None or context is None:
            return positions
        return positions + (context @ self.context).unsqueeze(1)

    def read(
        self,
        x: Tensor,
        offsets: Tensor,
        *,
        temperature: Tensor | float = 1.0,
        cache: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Outputs for a piece of the sequence, (batch, patches, out_features).

        Only a causal net gives for a piece what it gives for the whole.

        Args:
            x: patches `start` and on.
            offsets: `offsets` of the context at the same positions.
            temperature: divides the attention's scores; a number, or one for each sample of
                shape (batch, 1, 1, 1).
            cache: what `make_cache` returns, after a call with the patches before `start`. The
                keys and values of `x` are written into it.
            start: position of the first patch of `x`.
        """
        length = x.shape[1]
        mask = None
        if cache is not None and length > 1:
            seen = torch.ones(length, start + length, dtype=torch.bool, device=x.device)
            mask = seen.tril(start)
        piece = _Piece(start, length, temperature, mask, self.causal and cache is None)
        # One matrix of all patches, or else each linear layer makes one.
        h = (self.initial(x) + offsets).flatten(0, 1)
        if cache is not None:
            for layer, layer_cache in zip(self.layers, cache):
                h = layer(h, piece, layer_cache)
        elif self.checkpointing and torch.is_grad_enabled():
            for layer in self.layers:
                h = checkpoint(layer, h, piece, use_reentrant=False)
        else:
            for layer in self.layers:
                h = layer(h, piece)
        return self.final(self.norm(h)).unflatten(0, (x.shape[0], length))

    def make_cache(self, batch: int) -> Tensor:
        """An empty cache for the keys and values of `batch` sequences, see `read`.

        Of shape (layers, 2, batch, heads, patches, head_dim).
        """
        num_patches, channels = self.positions.shape
        heads = channels // self.head_dim
        shape = (len(self.layers), 2, batch, heads, num_patches, self.head_dim)
        return self.positions.new_empty(shape)


class CausalTransformer(Transformer):
    r"""The `Transformer` with `causal=True`, which TarFlow is made of.

    The output at each patch depends on that patch and those before it, so that a sequence can
    be read piece by piece. Arguments and shapes are those of `Transformer`.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024
        (https://arxiv.org/abs/2412.06329)

    Example:
        >>> net = CausalTransformer(16, 12, 24, channels=64)
        >>> net(torch.randn(5, 16, 12)).shape
        torch.Size([5, 16, 24])
    """

    __init__ = partialmethod(Transformer.__init__, causal=True)


@dataclass(frozen=True)
class _Piece:
    """Patches `start` and on of each sequence, and the mask and temperature of attention."""

    start: int
    length: int
    temperature: Tensor | float
    mask: Tensor | None
    is_causal: bool


class _Layer(nn.Module):
    """Attention and a perceptron on all patches as one matrix, (batch * length, channels)."""

    def __init__(self, channels: int, head_dim: int, expansion: int) -> None:
        super().__init__()
        self.attention = _Attention(channels, head_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels * expansion),
            nn.GELU(),
            nn.Linear(channels * expansion, channels),
        )

    def forward(self, h: Tensor, piece: _Piece, cache: Tensor | None = None) -> Tensor:
        h = h + self.attention(h, piece, cache)
        return h + self.mlp(h)


class _Attention(nn.Module):
    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = channels // head_dim
        self.scale = 1 / math.sqrt(head_dim)
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, piece: _Piece, cache: Tensor | None) -> Tensor:
        start, length = piece.start, piece.length
        rows, channels = h.shape
        heads = (3, self.num_heads, channels // self.num_heads)
        qkv = self.qkv(self.norm(h)).view(rows // length, length, *heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()
        if isinstance(piece.temperature, Tensor) or piece.temperature != 1.0:
            q = q / piece.temperature
        if cache is not None:
            cache.narrow(3, start, length).copy_(qkv[1:])
            k, v = cache.narrow(3, 0, start + length).unbind()
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=piece.mask, is_causal=piece.is_causal, scale=self.scale
        )
        return self.out(y.transpose(1, 2).reshape(h.shape))
