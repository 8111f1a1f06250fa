"""A causal Transformer that reads one patch of each sequence at a time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import replaces_methods
from .._dependencies import has_hooks
from .transformer import Transformer, _Attention, _Layer

__all__ = ["PatchReader"]

_KNOWN = (
    *(nn.ModuleList, nn.Sequential, nn.Linear, nn.LayerNorm, nn.GELU, nn.Identity),
    *(_Attention, _Layer),
)
# The norm of the attention, and the perceptron.
_PARTS = [nn.LayerNorm, nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]


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
        """Whether the net runs by the modules that it was built of, and nothing beside them."""
        layers: Any = net.layers
        return (
            type(net).read is Transformer.read
            and type(net.norm) is nn.Identity
            and all((m is net or type(m) in _KNOWN) and _is_plain(m) for m in net.modules())
            and all(
                [type(m) for m in (layer.attention.norm, *layer.mlp)] == _PARTS
                for layer in layers
            )
        )

    def __call__(self, x: Tensor, position: int) -> Tensor:
        """Outputs (batch, out_features) for the patches `x`, (batch, in_features).

        The patches at earlier positions are in the cache, and `x` is written into it.
        """
        h = torch.addmm(self.offsets[position], x, self.first)
        width = h.shape[1:]
        for attention, mlp in self.layers:
            *norm, qkv, qkv_bias, out, out_bias, scale, slots, keys, values = attention
            y = torch.layer_norm(h, width, *norm)
            y = torch.addmm(qkv_bias, y, qkv).view(self.split)
            slots[position].copy_(y.narrow(1, 1, 2))
            q = y.select(1, 0)
            if self.scaled:
                q = q / self.temperature
            k, v = [t.narrow(2, 0, position + 1) for t in (keys, values)]
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
            h = h + torch.addmm(out_bias, y.reshape(h.shape), out)
            *norm, up, up_bias, approximate, down, down_bias = mlp
            y = torch.layer_norm(h, width, *norm)
            y = F.gelu(torch.addmm(up_bias, y, up), approximate=approximate)
            h = h + torch.addmm(down_bias, y, down)
        return torch.addmm(self.last[0], h, self.last[1])


def _is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its class does, with all parameters."""
    # Tools for large models set `forward` on the instance.
    has_bias = getattr(module, "bias", module) is not None or type(module) is nn.LayerNorm
    return has_bias and not has_hooks(module) and not replaces_methods(module)


def _views(layer: Any, cache: Tensor) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The parts of a layer and of its cache that reading a patch needs, looked up once."""
    attention, (norm, up, activation, down) = layer.attention, layer.mlp
    slots = cache.transpose(0, 1).split(1, 3)
    return (
        (
            *(attention.norm.weight, attention.norm.bias, attention.norm.eps),
            *(attention.qkv.weight.t(), attention.qkv.bias),
            *(attention.out.weight.t(), attention.out.bias),
            *(attention.scale, slots, *cache.unbind()),
        ),
        (
            *(norm.weight, norm.bias, norm.eps, up.weight.t(), up.bias),
            *(activation.approximate, down.weight.t(), down.bias),
        ),
    )
