"""Lifts of a vector flow along one axis of a mixer matrix or an image, with shared weights."""

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from .._checks import check_size
from ..bijection import Bijection
from ..declarations import check_flow, context_features, event_shapes
from ..flow import Flow, apply_flow
from ..nets._inputs import patch_grid
from .patch_grid import cut, join

__all__ = ["ChannelMixing", "Lift", "PatchMixing", "PixelMixing", "WindowMixing"]


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
        """Number of vectors in a sample."""
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


class WindowMixing(Lift):
    r"""A vector flow over the patches of each square window, for each feature.

    The weights are the same for all windows and features, so that their number, and the time
    for a pixel, do not depend on the size of the image.

    Args:
        flow: any flow on vectors of size `window` squared, of this library or of normflows; a
            `context` of shape (batch, context_features) reaches it with every window and
            feature.
        num_patches: the (rows, columns) of the grid of patches, or their number if that is
            square.
        window: side of the windows in patches; rows and columns are multiples of it.

    Shapes: (batch, patches, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point; `flow` is not a flow.
        ValueError: windows that do not fill the grid, a number of patches that is no square, or
            a flow on vectors of another size (on construction); an input of another shape; a
            context of another batch size, or of another size than `flow` reads.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777), for mixing patches;
        Liu et al., Swin Transformer, 2021 (https://arxiv.org/abs/2103.14030), for windows

    Example:
        >>> layer = WindowMixing(mb.Coupling(64), num_patches=(16, 24), window=8)
        >>> z, log_det = layer.inverse(torch.randn(2, 384, 5))
        >>> z.shape, log_det.shape
        (torch.Size([2, 384, 5]), torch.Size([2]))
    """

    axis = 1
    num_axes = 2

    def __init__(self, flow: Flow, num_patches: int | Sequence[int], window: int) -> None:
        super().__init__(flow)
        check_size("WindowMixing", "window", window, least=1)
        rows, columns = patch_grid("WindowMixing", num_patches)
        if rows % window or columns % window:
            raise ValueError(
                f"WindowMixing: windows of {window} x {window} patches do not fill the grid of "
                f"{rows} x {columns} patches; rows and columns must be multiples of window"
            )
        if self.event_shape and self.event_shape[0] not in (None, window**2):
            raise ValueError(
                f"WindowMixing: {type(flow).__name__} is for vectors of size "
                f"{self.event_shape[0]}, but a window holds {window**2} patches"
            )
        self.grid, self.window = (rows, columns), window
        self.event_shape = self.latent_shape = (rows * columns, None)

    def vectors(self, x: Tensor) -> Tensor:
        image = x.mT.unflatten(2, self.grid)
        return cut(image, (self.window, self.window)).reshape(-1, self.window**2)

    def whole(self, vectors: Tensor, like: Tensor) -> Tensor:
        batch, _, features = like.shape
        windows = prod(self.grid) // self.window**2
        matrix = vectors.unflatten(0, (batch, windows, features)).flatten(2)
        image = join(matrix, (features, *self.grid), (self.window, self.window))
        return image.flatten(2).mT

    def copies(self, x: Tensor) -> int:
        return prod(self.grid) // self.window**2 * x.shape[2]


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
