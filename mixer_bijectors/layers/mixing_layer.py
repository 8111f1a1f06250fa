"""The layer of MixerFlow, which mixes features and patches, with named parts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._checks import check_builder
from ..bijection import Bijection
from ..chain import Chain
from ..declarations import chain_context, chain_shapes, check_flow
from ..flow import Flow, apply_flows
from ..nets import PatchConv
from ..nets._inputs import patch_count
from ..univariate import Affine, Univariate
from .actnorm import ActNorm
from .alternation import warn_unless_alternating
from .coupling import Coupling
from .lu_linear import LULinear
from .matrix_coupling import MatrixCoupling
from .mixing import ChannelMixing, PatchMixing, WindowMixing

__all__ = ["MixingLayer", "MixingStep", "NamedChain", "NeighbourhoodStep"]


class NamedChain(Bijection):
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
            event_shape, latent_shape=latent_shape, context_features=chain_context(name, parts)
        )
        self.names = tuple(flows)
        for key, flow in flows.items():
            self.add_module(key, flow)
        self.register_load_state_dict_pre_hook(_name_parts)
        warn_unless_alternating(parts, name=name, stacklevel=3)

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor]:
        return apply_flows(self.parts, x, context, inverse=inverse, **options)

    @property
    def parts(self) -> list[Any]:
        """The flows, in the order in which `forward` runs them."""
        return [getattr(self, name) for name in self.names]


class MixingStep(NamedChain):
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
            couplings=couplings(features), linear=LULinear(features), actnorm=ActNorm(features)
        )


class NeighbourhoodStep(NamedChain):
    r"""A mixing step over the features of each patch whose couplings read its neighbours.

    Args:
        num_patches: the (rows, columns) of the grid of patches, or their number if that is
            square.
        features: size of a patch.
        neighbourhood: side of the square of patches that the couplings read.
        univariate: the couplings' elementwise bijection.
        context_features: size of the context that the couplings read; 0 for none.
        options: those of `nets.PatchConv`.

    Attributes:
        couplings: two `MatrixCoupling` layers, which transform one half each.
        linear: an `LULinear` in a `ChannelMixing`.
        actnorm: an `ActNorm` in a `ChannelMixing`.

    Shapes: (batch, num_patches, features) in and out, log_det (batch,).
    """

    def __init__(
        self,
        num_patches: int | Sequence[int],
        features: int,
        *,
        neighbourhood: int,
        univariate: Univariate,
        context_features: int,
        **options: Any,
    ) -> None:
        coupling = partial(
            MatrixCoupling,
            num_patches,
            features,
            univariate,
            net=partial(PatchConv, neighbourhood=neighbourhood, **options),
            context_features=context_features,
        )
        super().__init__(
            couplings=Chain([coupling(reverse=True), coupling()]),
            linear=ChannelMixing(LULinear(features)),
            actnorm=ChannelMixing(ActNorm(features)),
        )


class MixingLayer(NamedChain):
    r"""A layer of MixerFlow: mixes the features of every patch, then the patches.

    From data to latent, over the features of each patch: ActNorm, an LU linear map and two
    couplings, which transform one half each; then the same over the patches of each feature.
    It starts as the identity, save for ActNorm.

    Args:
        num_patches: rows of the mixer matrix, or the (rows, columns) of the grid of patches,
            which a neighbourhood needs unless it is square.
        features: columns of the mixer matrix.
        hidden_features: width of the couplings' nets.
        num_blocks: residual blocks of the couplings' default nets.
        channel_flow: builds the flow over features in place of the two couplings, called with
            the number of features.
        patch_flow: builds the flow over patches in place of the two couplings, called with the
            number of patches.
        univariate: the couplings' elementwise bijection.
        net: the couplings' conditioner, see `Coupling`; with a neighbourhood, couplings over
            features put a convolution of the patches before it.
        context_features: size of the context that the couplings read; 0 for none.
        neighbourhood: side of the square of patches whose features the couplings over features
            read; 1 for those of the same patch alone, otherwise an odd number.
        window: side of the square windows of patches within which patches are mixed; None for
            all patches at once.

    Attributes:
        channel_mixing: a `ChannelMixing`, whose `flow` has `actnorm`, `linear` and `couplings`;
            with a neighbourhood, a chain on the matrix that has them.
        patch_mixing: a `PatchMixing` of the same parts, with a window a `WindowMixing`.

    Shapes: (batch, num_patches, features) in and out, context (batch, context_features),
    log_det (batch,).

    Raises:
        TypeError: the input is not floating point; a flow where a builder is expected.
        ValueError: couplings of fewer than 2 patches or features; an input of another shape; a
            context that is missing or of another shape; a neighbourhood that is even, or given
            beside `channel_flow`; windows that do not fill the grid.

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
        num_patches: int | Sequence[int],
        features: int,
        *,
        hidden_features: int = 128,
        num_blocks: int = 2,
        channel_flow: Callable[[int], Flow] | None = None,
        patch_flow: Callable[[int], Flow] | None = None,
        univariate: Univariate = Affine(max_log_scale=1.0),
        net: Callable[..., nn.Module] | None = None,
        context_features: int = 0,
        neighbourhood: int = 1,
        window: int | None = None,
    ) -> None:
        check_builder("MixingLayer", "channel_flow", channel_flow)
        check_builder("MixingLayer", "patch_flow", patch_flow)
        options: dict[str, Any] = {
            "univariate": univariate,
            "net": net,
            "hidden_features": hidden_features,
            "num_blocks": num_blocks,
            "context_features": context_features,
        }
        couplings = partial(_couplings, **options)
        channel_mixing: Bijection
        if neighbourhood == 1:
            channel_mixing = ChannelMixing(MixingStep(features, channel_flow or couplings))
        elif channel_flow is not None:
            raise ValueError(
                "MixingLayer: a channel_flow sees one patch; leave it out, or neighbourhood="
                f"{neighbourhood}"
            )
        else:
            channel_mixing = NeighbourhoodStep(
                num_patches, features, neighbourhood=neighbourhood, **options
            )
        patch_flow = patch_flow or couplings
        patch_mixing: Bijection
        if window is None:
            count = patch_count("MixingLayer", num_patches)
            patch_mixing = PatchMixing(MixingStep(count, patch_flow))
        else:
            step = MixingStep(window**2, patch_flow)
            patch_mixing = WindowMixing(step, num_patches, window)
        super().__init__(patch_mixing=patch_mixing, channel_mixing=channel_mixing)


def _couplings(size: int, **options: Any) -> Chain:
    return Chain([Coupling(size, reverse=True, **options), Coupling(size, **options)])


def _name_parts(layer: Any, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Rename the numbered parts of an older state_dict."""
    for index, name in enumerate(layer.names):
        former = f"{prefix}flows.{index}."
        for key in [key for key in state_dict if key.startswith(former)]:
            state_dict[f"{prefix}{name}.{key.removeprefix(former)}"] = state_dict.pop(key)
