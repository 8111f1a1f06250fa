"""A causal Transformer that reads one patch of each sequence at a time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import Transformer, _Attention, _Layer

__all__ = ["PatchReader"]

_KNOWN = (
    *(nn.ModuleList, nn.Sequential, nn.Linear, nn.LayerNorm, nn.GELU, nn.Identity),
    *(_Attention, _Layer),
)


class PatchReader:
    """Reads sequences by a causal `Transformer`, one patch of each at a time.

    It computes what `Transformer.read` computes for pieces of one patch. There, calls of
    modules and views take longer than arithmetic; here they are prepared for all patches.

    Args:
        net: a causal net for which `can_read` is true.
        cache: what its `make_cache` returns.
        offsets: its `offsets` of the context.
        temperature: divides the attention's scores; a number, or one for each sample of shape
            (batch, 1, 1, 1).
    """

    def __init__(
        self, net: Transformer, cache: Tensor, offsets: Tensor, temperature: Tensor | float
    ) -> None:
        heads, _, head_dim = cache.shape[3:]
        self.split = (-1, 3, heads, 1, head_dim)
        self.first = net.initial.weight.t()
        self.offsets = (offsets + net.initial.bias).unbind(1)
        self.layers = [_views(layer, cached) for layer, cached in zip(net.layers, cache)]
        self.last = net.final.bias, net.final.weight.t()
        self.temperature = temperature
        self.scaled = isinstance(temperature, Tensor) or temperature != 1.0

    @staticmethod
    def can_read(net: Transformer) -> bool:
        """Whether the net consists of the modules that it was built of, without hooks."""
        return all(
            (module is net or type(module) in _KNOWN)
            and not (module._forward_hooks or module._forward_pre_hooks)
            for module in net.modules()
        )

    def __call__(self, x: Tensor, position: int) -> Tensor:
        """Outputs (batch, out_features) for the patches `x`, (batch, in_features).

        The patches at earlier positions are in the cache, and `x` is written into it.
        """
        h = torch.addmm(self.offsets[position], x, self.first)
        width = h.shape[1:]
        for attention, mlp in self.layers:
            norm, norm_bias, qkv, qkv_bias, out, out_bias, scale, slots, *cached = attention
            y = torch.layer_norm(h, width, norm, norm_bias)
            y = torch.addmm(qkv_bias, y, qkv).view(self.split)
            slots[position].copy_(y.narrow(1, 1, 2))
            q = y.select(1, 0)
            if self.scaled:
                q = q / self.temperature
            k, v = [t.narrow(2, 0, position + 1) for t in cached]
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
            h = h + torch.addmm(out_bias, y.reshape(h.shape), out)
            norm, norm_bias, up, up_bias, down, down_bias = mlp
            y = torch.layer_norm(h, width, norm, norm_bias)
            y = F.gelu(torch.addmm(up_bias, y, up))
            h = h + torch.addmm(down_bias, y, down)
        return torch.addmm(self.last[0], h, self.last[1])


def _views(layer: Any, cache: Tensor) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """What reading a patch takes of a layer and of its cache, each looked up once."""
    attention, (norm, up, _, down) = layer.attention, layer.mlp
    slots = cache.transpose(0, 1).split(1, 3)
    return (
        (
            *(attention.norm.weight, attention.norm.bias),
            *(attention.qkv.weight.t(), attention.qkv.bias),
            *(attention.out.weight.t(), attention.out.bias),
            *(attention.scale, slots, *cache.unbind()),
        ),
        (norm.weight, norm.bias, up.weight.t(), up.bias, down.weight.t(), down.bias),
    )
