"""Multilayer perceptrons."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_size
from ._inputs import concatenate_context

__all__ = ["ResidualMLP"]


class ResidualMLP(nn.Module):
    r"""Perceptron of pre-activation residual blocks whose output starts at zero.

    A linear layer to `hidden_features`, `num_blocks` blocks
    :math:`h + W_2 \, \phi(W_1 \, \phi(h))` with an activation :math:`\phi`, and a linear layer
    to `out_features` that starts at zero, so that the layer it conditions starts as the
    identity. Beside the blocks runs a linear path from input to output.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        hidden_features: width of the blocks.
        num_blocks: number of blocks.
        context_features: size of a context that is read beside the input; 0 for none.
        activation: the activation :math:`\phi`.

    Shapes: (..., in_features) and (..., context_features) in, (..., out_features) out; the
        context broadcasts.

    Raises:
        ValueError: a width below 1, a negative number of blocks; an input or a context of
            another shape; a context that is missing.

    References:
        He et al., Identity mappings in deep residual networks, 2016
        (https://arxiv.org/abs/1603.05027)

    Example:
        >>> net = ResidualMLP(4, 6, hidden_features=32, num_blocks=2)
        >>> net(torch.randn(10, 4)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden_features: int = 128,
        num_blocks: int = 2,
        context_features: int = 0,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        check_size("ResidualMLP", "hidden_features", hidden_features, least=1)
        check_size("ResidualMLP", "num_blocks", num_blocks, least=0)
        self.in_features = in_features
        self.context_features = context_features
        self.initial = nn.Linear(in_features + context_features, hidden_features)
        self.blocks = nn.ModuleList(
            _Block(hidden_features, activation) for _ in range(num_blocks)
        )
        self.final = nn.Linear(hidden_features, out_features)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        sizes = (self.in_features, self.context_features)
        h = self.initial(concatenate_context("ResidualMLP", x, context, *sizes))
        for block in self.blocks:
            h = block(h)
        return self.final(h)


class _Block(nn.Module):
    def __init__(self, features: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.linear1 = nn.Linear(features, features)
        self.linear2 = nn.Linear(features, features)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear2(self.activation(self.linear1(self.activation(h))))
