"""Lifts of a vector flow along one axis of a mixer matrix or an image, with shared weights."""

from typing import ClassVar

from torch import Tensor

from ._checks import check_context, check_input
from .flow import Flow, apply_flow

__all__ = ["ChannelMixing", "PatchMixing", "PixelMixing"]


class _Mixing(Flow):
    """Applies one vector flow to all vectors along `axis`, as one large batch of them."""

    axis: ClassVar[int]
    event: ClassVar[tuple[str, ...]]

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._lift(z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._lift(x, context, inverse=True)

    def _lift(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        name = type(self).__name__
        check_input(name, x, *self.event)
        rows = x.movedim(self.axis, -1)
        leading = rows.shape[:-1]
        copies = leading[1:].numel()
        if context is not None:
            check_context(name, context, len(x), "context_features")
            context = context.unsqueeze(1).expand(-1, copies, -1).flatten(0, 1)
        y, log_det = apply_flow(
            self.flow, rows.reshape(-1, rows.shape[-1]), context, inverse=inverse
        )
        y = y.unflatten(0, leading).movedim(-1, self.axis)
        return y, log_det.unflatten(0, (len(x), copies)).sum(1)


class ChannelMixing(_Mixing):
    r"""A vector flow over the features of each patch, the same weights for every patch.

    Args:
        flow: any flow on vectors of size `features`, ours or foreign; a `context` of shape
            (batch, context_features) reaches it with every patch.

    Shapes: (batch, patches, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input has not three dimensions, or the context not (batch, any).

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> layer = ChannelMixing(nf.flows.MaskedAffineAutoregressive(48, 64))
        >>> z, log_det = layer.inverse(torch.randn(2, 64, 48))
        >>> z.shape, log_det.shape
        (torch.Size([2, 64, 48]), torch.Size([2]))
    """

    axis = -1
    event = ("patches", "features")


class PatchMixing(_Mixing):
    r"""A vector flow over the patches of each feature, the same weights for every feature.

    Args:
        flow: any flow on vectors of size `patches`, ours or foreign; a `context` of shape
            (batch, context_features) reaches it with every feature.

    Shapes: (batch, patches, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input has not three dimensions, or the context not (batch, any).

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> layer = PatchMixing(mb.Coupling(64))
        >>> z, log_det = layer.inverse(torch.randn(2, 64, 48))
        >>> z.shape, log_det.shape
        (torch.Size([2, 64, 48]), torch.Size([2]))
    """

    axis = 1
    event = ("patches", "features")


class PixelMixing(_Mixing):
    r"""A vector flow over the colour channels of each pixel, the same weights for every pixel.

    With `LULinear(channels)` it is Glow's invertible 1x1 convolution.

    Args:
        flow: any flow on vectors of size `channels`, ours or foreign; a `context` of shape
            (batch, context_features) reaches it with every pixel.

    Shapes: (batch, channels, height, width) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input has not four dimensions, or the context not (batch, any).

    References:
        Kingma and Dhariwal, Glow, 2018 (https://arxiv.org/abs/1807.03039)

    Example:
        >>> layer = PixelMixing(mb.LULinear(3))
        >>> z, log_det = layer.inverse(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    axis = 1
    event = ("channels", "height", "width")
