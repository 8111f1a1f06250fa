"""Nets over neighbourhoods of patches."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from .._checks import check_builder, check_context, check_event, check_size
from ._inputs import patch_grid
from .residual_mlp import ResidualMLP

__all__ = ["PatchConv"]


class PatchConv(nn.Module):
    r"""A k x k convolution over the grid of patches, and then layers on each patch alone.

    There are zeros around the image. The output at a patch depends on no patch farther away
    than :math:`(k - 1) / 2` rows or columns. It starts at zero, so that the layer it conditions
    starts as the identity.

    Args:
        num_patches: the (rows, columns) of the grid of patches, or their number if that is
            square.
        in_features: size of a patch.
        out_features: size of the output for a patch.
        neighbourhood: the side :math:`k`, an odd number.
        hidden_features: width of the convolution and of the layers on each patch.
        num_blocks: residual blocks of the default layers.
        net: builds the layers on each patch, called as `net(in_features, out_features,
            hidden_features=..., context_features=...)` where `in_features` is the width of
            the convolution; by default `nets.ResidualMLP`.
        context_features: size of a context that is read beside the input; 0 for none.

    Shapes: (batch, patches, in_features) and (batch, context_features) in,
        (batch, patches, out_features) out.

    Raises:
        TypeError: `net` is a module instead of what builds one.
        ValueError: a number of patches that is no square, an even `neighbourhood`, a width
            below 1; an input or a context of another shape; a context that is missing.

    Example:
        >>> net = PatchConv(16, 12, 24, hidden_features=32)
        >>> net(torch.randn(5, 16, 12)).shape
        torch.Size([5, 16, 24])
    """

    def __init__(
        self,
        num_patches: int | Sequence[int],
        in_features: int,
        out_features: int,
        *,
        neighbourhood: int = 3,
        hidden_features: int = 128,
        num_blocks: int = 2,
        net: Callable[..., nn.Module] | None = None,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        check_size("PatchConv", "neighbourhood", neighbourhood, least=1)
        if neighbourhood % 2 == 0:
            raise ValueError(f"PatchConv: neighbourhood must be odd, got {neighbourhood}")
        check_size("PatchConv", "hidden_features", hidden_features, least=1)
        check_builder("PatchConv", "net", net)
        self.grid = patch_grid("PatchConv", num_patches)
        self.in_features = in_features
        self.context_features = context_features
        self.conv = nn.Conv2d(
            in_features, hidden_features, neighbourhood, padding=neighbourhood // 2
        )
        net = net or partial(ResidualMLP, num_blocks=num_blocks)
        self.net = net(
            hidden_features,
            out_features,
            hidden_features=hidden_features,
            context_features=context_features,
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        rows, columns = self.grid
        check_event("PatchConv", x, (rows * columns, self.in_features))
        h = self.conv(x.mT.unflatten(2, self.grid)).flatten(2).mT
        if not self.context_features:
            return self.net(h)
        context = check_context("PatchConv", context, x.shape[0], self.context_features)
        return self.net(h, context.unsqueeze(1))
