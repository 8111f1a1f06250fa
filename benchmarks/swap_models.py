"""Models of normflows, nflows and zuko, as their examples build them, and layers to swap in."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import normflows as nf
import torch
import zuko
from nflows.distributions import ConditionalDiagonalNormal
from nflows.flows import Flow
from nflows.transforms import (
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    ReversePermutation,
)
from torch import Tensor, nn

import mixer_bijectors as mb

# The layer of this library at a place of the model, with nets of a width.
Layer = Callable[[int, int], nn.Module]
# The layers that come into the model, if it is not as its library has it.
Layers = list[nn.Module] | None


def real_nvp(layers: Layers) -> nn.Module:
    flows: list[nn.Module] = []
    for i in range(16):
        scale, shift = (nf.nets.MLP([2, 4, 2], init_zeros=True) for _ in range(2))
        mask = torch.tensor([1.0, 0.0] if i % 2 == 0 else [0.0, 1.0])
        theirs = nf.flows.MaskedAffineFlow(mask, shift, scale)
        flows += [layers[i] if layers else theirs, nf.flows.ActNorm(2)]
    target = nf.distributions.TwoModes(2, 0.1)
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows, target).double()
    model.sample(128)  # starts the ActNorms
    return model


def affine_coupling(i: int, width: int) -> nn.Module:
    return mb.Coupling(2, num_blocks=1, hidden_features=width, reverse=i % 2 == 1)


def spline_flow(theirs: Callable[..., nn.Module], context: int, layers: Layers) -> nn.Module:
    flows: list[nn.Module] = []
    for i in range(4):
        layer = layers[i] if layers else theirs(2, 2, 64, num_context_channels=context or None)
        flows += [layer, nf.flows.LULinearPermute(2)]
    base = nf.distributions.DiagGaussian(2, trainable=False)
    return (nf.ConditionalNormalizingFlow if context else nf.NormalizingFlow)(base, flows)


def autoregressive(
    univariate: Any, i: int, width: int, *, context: int = 0, num_blocks: int = 2
) -> nn.Module:
    return mb.Autoregressive(
        2,
        univariate,
        hidden_features=width,
        num_blocks=num_blocks,
        context_features=context,
    )


def coupling(
    univariate: Any, i: int, width: int, *, context: int = 0, both: bool = True
) -> nn.Module:
    layer = mb.Coupling(2, univariate, hidden_features=width, context_features=context)
    return mb.Chain([layer, mb.Elementwise(2, univariate)]) if both else layer


class OfAngles(nn.Module):
    """A net of the sines and cosines of its input."""

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__()
        self.net = mb.nets.ResidualMLP(2 * in_features, out_features, num_blocks=1, **options)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(torch.cat((x.sin(), x.cos()), dim=-1), context)


def circular(angles: list[int], layers: Layers) -> nn.Module:
    bounds = torch.tensor([math.pi if i in angles else 5.0 for i in range(2)])
    theirs = partial(nf.flows.CircularCoupledRationalQuadraticSpline, 2, 1, 64, angles)
    flows = layers or [theirs(tail_bound=bounds, reverse_mask=i % 2 == 0) for i in range(6)]
    scale = torch.tensor([2 * math.pi if i in angles else 1.0 for i in range(2)])
    return nf.NormalizingFlow(nf.distributions.UniformGaussian(2, angles, scale), flows)


def circular_coupling(angles: list[int], i: int, width: int) -> nn.Module:
    kept, transformed = (1, 0) if i % 2 else (0, 1)
    angle = mb.RationalQuadratic(circular=True, bound=math.pi)
    line = mb.RationalQuadratic(bound=5.0)
    return mb.Coupling(
        2,
        angle if transformed in angles else line,
        hidden_features=width,
        net=OfAngles if kept in angles else partial(mb.nets.ResidualMLP, num_blocks=1),
        reverse=i % 2 == 1,
    )


def glow(layers: Layers) -> nn.Module:
    flows, merges, bases = [], [], []
    for level in range(2):
        channels, side = 2 ** (3 - level), 2 ** (level + 1)
        blocks = [nf.flows.GlowBlock(channels, 32) for _ in range(4)]
        for i, block in enumerate(blocks):
            if layers:
                block.flows[0] = layers[4 * level + i]
        flows.append([*blocks, nf.flows.Squeeze()])
        merges += [nf.flows.Merge()] * level
        shape = (channels // (1 + level), side, side)
        bases.append(nf.distributions.ClassCondDiagGaussian(shape, 10))
    return nf.MultiscaleFlow(bases, flows, merges)


def mixing(i: int, width: int) -> nn.Module:
    level = i // 4
    channels, side = 2 ** (3 - level), 2 ** (level + 1)
    patchify = mb.Patchify((channels, side, side), 1)
    patches = mb.PatchMixing(mb.Coupling(side**2, hidden_features=width))
    features = mb.ChannelMixing(mb.Coupling(channels, hidden_features=width))
    return mb.Chain([nf.flows.Reverse(patchify), patches, features, patchify])


def conditional_moons(layers: Layers) -> nn.Module:
    transforms: list[nn.Module] = []
    for i in range(5):
        theirs = MaskedAffineAutoregressiveTransform(2, 4, context_features=1)
        transforms += [ReversePermutation(2), mb.to_nflows(layers[i]) if layers else theirs]
    base = ConditionalDiagonalNormal([2], context_encoder=nn.Linear(1, 4))
    return Flow(CompositeTransform(transforms), base)


class InZuko(zuko.lazy.LazyTransform):
    """A flow as zuko wants it: built for a context, from data to latent."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, context: Tensor | None = None) -> torch.distributions.Transform:
        return mb.to_torch_transform(self.flow, context=context).inv


def zuko_spline_flow(layers: Layers) -> nn.Module:
    model = zuko.flows.NSF(2, transforms=3, hidden_features=(64, 64))
    for i, layer in enumerate(layers or []):
        model.transform.transforms[i] = InZuko(layer)
    return model


WIDE_SPLINE = mb.Inverse(mb.RationalQuadratic(bound=5.0))


def alternating(i: int, width: int) -> mb.Autoregressive:
    return mb.Autoregressive(
        2, WIDE_SPLINE, hidden_features=width, num_blocks=1, reverse=i % 2 == 1
    )


class NetOfZuko(nn.Module):
    """The net of zuko's layers, which starts at zero as those of this library do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        reads = torch.tensor([[False, False], [True, False]])
        reads = reads.repeat_interleave(WIDE_SPLINE.num_params, 0)
        self.net = zuko.nn.MaskedMLP(reads, (width, width))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x)


def with_net_of_zuko(i: int, width: int) -> nn.Module:
    layer = alternating(i, width)
    layer.net = NetOfZuko(width)
    return layer


def alternating_coupling(i: int, width: int) -> nn.Module:
    layer = mb.Coupling(2, WIDE_SPLINE, hidden_features=width, num_blocks=1, reverse=i % 2 == 1)
    return mb.Chain([layer, mb.Elementwise(2, WIDE_SPLINE)])
