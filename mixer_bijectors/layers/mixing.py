"""Lifts of a vector flow along one axis of a mixer matrix or an image, with shared weights."""

from math import prod
from typing import Any, ClassVar

from torch import Tensor

from ..bijection import Bijection
from ..declarations import check_flow, context_features, event_shapes
from ..flow import Flow, apply_flow

__all__ = ["ChannelMixing", "Lift", "PatchMixing", "PixelMixing"]


class Lift(Bijection):
    """A vector flow on all vectors along `axis`, as one large batch."""

    axis: ClassVar[int]
    num_axes: ClassVar[int]
    holds_flows = True

    def __init__(self, flow: Flow) -> None:
        name = type(self).__name__
        check_flow(name, flow)
        vector = event_shapes(flow)[1]
        if vector is not None and len(vector) != 1:
            raise ValueError(
                f"{name}: needs a flow on vectors, got {type(flow).__name__} for events of "
                f"{len(vector)} axes"
            )
        sizes: list[int | None] = [None] * self.num_axes
        if vector is not None:
            sizes[self.axis - 1] = vector[0]
        super().__init__(sizes, context_features=context_features(flow))
        self.flow = flow

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor]:
        context = self.context_of_vectors(x, context)
        vectors = self.vectors(x)
        y, log_det = apply_flow(self.flow, vectors, context, inverse=inverse, **options)
        return self.whole(y, x), log_det.unflatten(0, (x.shape[0], self.copies(x))).sum(1)

    def vectors(self, x: Tensor) -> Tensor:
        """All vectors along the axis, as one large batch (batch * copies, size)."""
        rows = x.movedim(self.axis, -1)
        return rows.reshape(-1, rows.shape[-1])

    def whole(self, vectors: Tensor, like: Tensor) -> Tensor:
        """The matrices or images of such vectors, as many as `like` holds."""
        leading = like.movedim(self.axis, -1).shape[:-1]
        return vectors.unflatten(0, leading).movedim(-1, self.axis)

    def copies(self, x: Tensor) -> int:
        """How many vectors a sample has."""
        sizes = x.movedim(self.axis, -1).shape[1:-1]
        return prod(sizes)  # numel() would turn symbols into numbers

    def context_of_vectors(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """The context of each sample for each of its vectors."""
        if context is None:
            return None
        context = context.expand(x.shape[0], *context.shape[1:]).unsqueeze(1)
        return context.expand(-1, self.copies(x), *context.shape[2:]).flatten(0, 1)


class ChannelMixing(Lift):
    r"""A vector flow over the features of each patch, the same weights for every patch.

    Args:
        flow: any flow on vectors of size `features`, of this library or of normflows; a
            `context` of shape (batch, context_features) reaches it with every patch.

    Shapes: (batch, patches, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point; `flow` is not a flow.
        ValueError: an input that has not three dimensions, or vectors of another size than
            `flow` declares; a context of another batch size, or of another size than `flow`
            reads; a flow on something else than vectors (on construction).

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> layer = ChannelMixing(nf.flows.MaskedAffineAutoregressive(48, 64))
        >>> z, log_det = layer.inverse(torch.randn(2, 64, 48))
        >>> z.shape, log_det.shape
        (torch.Size([2, 64, 48]), torch.Size([2]))
    """

    axis = 2
    num_axes = 2


class PatchMixing(Lift):
    r"""A vector flow over the patches of each feature, the same weights for every feature.

    Args:
        flow: any flow on vectors of size `patches`, of this library or of normflows; a
            `context` of shape (batch, context_features) reaches it with every feature.

    Shapes: (batch, patches, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point; `flow` is not a flow.
        ValueError: an input that has not three dimensions, or vectors of another size than
            `flow` declares; a context of another batch size, or of another size than `flow`
            reads; a flow on something else than vectors (on construction).

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> layer = PatchMixing(mb.Coupling(64))
        >>> z, log_det = layer.inverse(torch.randn(2, 64, 48))
        >>> z.shape, log_det.shape
        (torch.Size([2, 64, 48]), torch.Size([2]))
    """

    axis = 1
    num_axes = 2


class PixelMixing(Lift):
    r"""A vector flow over the colour channels of each pixel, the same weights for every pixel.

    With `LULinear(channels)` it is Glow's invertible 1x1 convolution.

    Args:
        flow: any flow on vectors of size `channels`, of this library or of normflows; a
            `context` of shape (batch, context_features) reaches it with every pixel.

    Shapes: (batch, channels, height, width) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point; `flow` is not a flow.
        ValueError: an input that has not four dimensions, or pixels of another size than
            `flow` declares; a context of another batch size, or of another size than `flow`
            reads; a flow on something else than vectors (on construction).

    References:
        Kingma and Dhariwal, Glow, 2018 (https://arxiv.org/abs/1807.03039)

    Example:
        >>> layer = PixelMixing(mb.LULinear(3))
        >>> z, log_det = layer.inverse(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    axis = 1
    num_axes = 3
