"""MLP-Mixers."""

from collections.abc import Sequence

from torch import Tensor, nn

from .._checks import check_context, check_event, check_size
from ._inputs import concatenate_context, patch_count

__all__ = ["Mixer"]


class Mixer(nn.Module):
    r"""MLP-Mixer: perceptrons over the patches and over the features of each patch, in turn.

    A linear layer to `hidden_features`, `num_blocks` blocks of two pre-norm perceptrons with
    GELU, the first over the patches of each feature, the second over the features of each
    patch, a LayerNorm, and a linear layer to `out_features` that starts at zero, so that the
    layer it conditions starts as the identity. The output at each patch depends on all patches.

    Args:
        num_patches: number of patches, or the (rows, columns) of their grid.
        in_features: size of a patch.
        out_features: size of the output for a patch.
        hidden_features: width.
        num_blocks: number of blocks.
        expansion: width of the perceptrons' hidden layers, in multiples of the number of
            patches and of `hidden_features`.
        context_features: size of a context that is read beside every patch; 0 for none.

    Shapes: (batch, patches, in_features) and (batch, context_features) in,
        (batch, patches, out_features) out.

    Raises:
        ValueError: a number below 1; an input or a context of another shape; a context that is
            missing.

    References:
        Tolstikhin et al., MLP-Mixer, 2021 (https://arxiv.org/abs/2105.01601)

    Example:
        >>> net = Mixer(16, 12, 24, hidden_features=32)
        >>> net(torch.randn(5, 16, 12)).shape
        torch.Size([5, 16, 24])
    """

    def __init__(
        self,
        num_patches: int | Sequence[int],
        in_features: int,
        out_features: int,
        *,
        hidden_features: int = 128,
        num_blocks: int = 2,
        expansion: int = 2,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.num_patches = patch_count("Mixer", num_patches)
        sizes = {
            "hidden_features": hidden_features,
            "num_blocks": num_blocks,
            "expansion": expansion,
        }
        for argument, size in sizes.items():
            check_size("Mixer", argument, size, least=1)
        self.in_features = in_features
        self.context_features = context_features
        self.initial = nn.Linear(in_features + context_features, hidden_features)
        self.blocks = nn.ModuleList(
            _Block(self.num_patches, hidden_features, expansion) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(hidden_features)
        self.final = nn.Linear(hidden_features, out_features)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_event("Mixer", x, (self.num_patches, self.in_features))
        if self.context_features:
            context = check_context("Mixer", context, x.shape[0], self.context_features)
            context = context.unsqueeze(1)
        sizes = (self.in_features, self.context_features)
        h = self.initial(concatenate_context("Mixer", x, context, *sizes))
        for block in self.blocks:
            h = block(h)
        return self.final(self.norm(h))


class _Block(nn.Module):
    def __init__(self, num_patches: int, features: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.over_patches = _perceptron(num_patches, expansion)
        self.norm2 = nn.LayerNorm(features)
        self.over_features = _perceptron(features, expansion)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.over_patches(self.norm1(h).mT).mT
        return h + self.over_features(self.norm2(h))


def _perceptron(size: int, expansion: int) -> nn.Sequential:
    hidden = expansion * size
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
