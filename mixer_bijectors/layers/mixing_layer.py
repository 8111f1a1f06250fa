"""The layer of MixerFlow, which mixes features and patches, with named parts."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._checks import check_builder
from ..bijection import Bijection
from ..chain import Chain
from ..flow import Flow, apply_flows, chain_context, chain_shapes, check_flow
from ..univariate import Affine, Univariate
from .actnorm import ActNorm
from .alternation import warn_unless_alternating
from .coupling import Coupling
from .lu_linear import LULinear
from .mixing import ChannelMixing, PatchMixing

__all__ = ["MixingLayer", "MixingStep"]


class _NamedChain(Bijection):
    """Composition of flows that have names, given in the order in which `forward` runs them.

    A state_dict in which they are numbered, as in a `Chain`, loads too.
    """

    holds_flows = True

    def __init__(self, **flows: Flow) -> None:
        name, parts = type(self).__name__, list(flows.values())
        for flow in parts:
            check_flow(name, flow)
        latent_shape, event_shape = chain_shapes(name, parts)
        super().__init__(
            event_shape,
            latent_shape=latent_shape,
            context_features=chain_context(name, parts),
        )
        self.names = tuple(flows)
        for key, flow in flows.items():
            self.add_module(key, flow)
        self.register_load_state_dict_pre_hook(_name_parts)
        warn_unless_alternating(parts, name=name, stacklevel=3)

    def transform(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        inverse: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        flows = [getattr(self, name) for name in self.names]
        return apply_flows(flows, x, context, inverse=inverse, **options)


class MixingStep(_NamedChain):
    r"""From data to latent: `actnorm`, a `linear` map, then `couplings`, on vectors.

    Args:
        features: size of the vectors.
        couplings: builds the flow that comes last, called with the size.

    Attributes:
        couplings: the flow that was built.
        linear: an `LULinear`.
        actnorm: an `ActNorm`.

    Shapes: (batch, features) in and out, log_det (batch,).
    """

    def __init__(self, features: int, couplings: Callable[[int], Flow]) -> None:
        super().__init__(
            couplings=couplings(features),
            linear=LULinear(features),
            actnorm=ActNorm(features),
        )


class MixingLayer(_NamedChain):
    r"""A layer of MixerFlow: mixes the features of every patch, then the patches.

    From data to latent, over the features of each patch: ActNorm, an LU linear map and two
    couplings, which transform one half each; then the same over the patches of each feature.
    It starts as the identity, save for ActNorm.

    Args:
        num_patches: rows of the mixer matrix.
        features: columns of the mixer matrix.
        hidden_features: width of the couplings' nets.
        num_blocks: residual blocks of the couplings' default nets.
        channel_flow: builds the flow over features in place of the two couplings, called with
            the number of features.
        patch_flow: builds the flow over patches in place of the two couplings, called with the
            number of patches.
        univariate: the couplings' elementwise bijection.
        net: the couplings' conditioner, see `Coupling`.
        context_features: size of the context that the couplings read; 0 for none.

    Attributes:
        channel_mixing: a `ChannelMixing`, whose `flow` has `actnorm`, `linear` and `couplings`.
        patch_mixing: a `PatchMixing` of the same parts.

    Shapes: (batch, num_patches, features) in and out, context (batch, context_features),
    log_det (batch,).

    Raises:
        TypeError: the input is not floating point; a flow where a builder is expected.
        ValueError: couplings of fewer than 2 patches or features; an input of another shape; a
            context that is missing or of another shape.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> layer = MixingLayer(64, 48, hidden_features=32)
        >>> z, log_det = layer.inverse(torch.randn(2, 64, 48))
        >>> z.shape, layer.channel_mixing.flow.linear.event_shape
        (torch.Size([2, 64, 48]), (48,))
    """

    def __init__(
        self,
        num_patches: int,
        features: int,
        *,
        hidden_features: int = 128,
        num_blocks: int = 2,
        channel_flow: Callable[[int], Flow] | None = None,
        patch_flow: Callable[[int], Flow] | None = None,
        univariate: Univariate = Affine(max_log_scale=1.0),
        net: Callable[..., nn.Module] | None = None,
        context_features: int = 0,
    ) -> None:
        check_builder("MixingLayer", "channel_flow", channel_flow)
        check_builder("MixingLayer", "patch_flow", patch_flow)
        couplings = partial(
            _couplings,
            univariate=univariate,
            net=net,
            hidden_features=hidden_features,
            num_blocks=num_blocks,
            context_features=context_features,
        )
        super().__init__(
            patch_mixing=PatchMixing(MixingStep(num_patches, patch_flow or couplings)),
            channel_mixing=ChannelMixing(MixingStep(features, channel_flow or couplings)),
        )


def _couplings(size: int, **options: Any) -> Chain:
    return Chain([Coupling(size, reverse=True, **options), Coupling(size, **options)])


def _name_parts(layer: Any, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Rename the numbered parts of an older state_dict."""
    for index, name in enumerate(layer.names):
        former = f"{prefix}flows.{index}."
        for key in [key for key in state_dict if key.startswith(former)]:
            state_dict[f"{prefix}{name}.{key.removeprefix(former)}"] = state_dict.pop(key)
