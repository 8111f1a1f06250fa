"""Kolmogorov-Arnold networks."""

from itertools import pairwise
from math import comb, factorial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_size
from ._inputs import concatenate_context

__all__ = ["KAN", "cardinal_bspline"]

_BOUND = 3.0  # of the grids: inputs and hidden units are of unit scale


def cardinal_bspline(u: Tensor, order: int) -> Tensor:
    r"""The B-spline with integer knots whose support has its middle at 0, at `u`.

    .. math:: B_k(u) = \frac{1}{k!} \sum_{j=0}^{\lfloor k / 2 \rfloor} (-1)^j \binom{k + 1}{j}
        \max\left(0, \tfrac{k + 1}{2} - |u| - j\right)^k

    References:
        Schoenberg, Cardinal spline interpolation, 1973, lecture 1

    Example:
        >>> cardinal_bspline(torch.tensor([-1.0, 0.0, 0.5]), order=1)
        tensor([0.0000, 1.0000, 0.5000])
    """
    reach = (order + 1) / 2 - u.abs()
    terms = (
        (-1) ** j * comb(order + 1, j) / factorial(order) * F.relu(reach - j) ** order
        for j in range(order // 2 + 1)
    )
    return sum(terms, start=torch.zeros_like(u))


def uniform_basis(u: Tensor, grid_size: int, order: int) -> Tensor:
    """The grid_size + order B-splines on a grid of unit cells that starts at 0.

    Args:
        u: positions of shape (..., features).
        grid_size: number of cells.
        order: degree of the splines, 1 to 3.

    Returns:
        Values of shape (..., grid_size + order, features).

    Example:
        >>> uniform_basis(torch.tensor([0.5]), grid_size=2, order=1)
        tensor([[0.5000],
                [0.5000],
                [0.0000]])
    """
    if torch.compiler.is_compiling():
        # One loop over memory, with nothing to index.
        centers = (1 - order) / 2 + torch.arange(grid_size + order, device=u.device)
        return cardinal_bspline(u.unsqueeze(-2) - centers.unsqueeze(-1).to(u.dtype), order)
    # Only order + 1 of the splines are not zero. Cells are counted from the start of the first
    # spline; `order` more cells on either side receive inputs beyond the grid, and are cut off.
    v = (u + order).clamp(0, grid_size + 2 * order)
    cell = v.detach().floor().clamp(max=grid_size + 2 * order - 1).nan_to_num(0.0)
    t = v - cell
    r = 1 - t
    values: tuple[Tensor, ...]
    if order == 1:
        values = (r, t)
    elif order == 2:
        values = (r * r / 2, t * r + 0.5, t * t / 2)
    else:
        middle = ((s * s * (3 * s - 6) + 4) / 6 for s in (t, r))
        values = (r * r * r / 6, *middle, t * t * t / 6)
    index = cell.long().unsqueeze(-2) + torch.arange(order + 1, device=u.device).unsqueeze(-1)
    padded = v.new_zeros(*v.shape[:-1], grid_size + 3 * order, v.shape[-1])
    padded.scatter_(-2, index, torch.stack(values, dim=-2))
    return padded[..., order:-order, :]


class KAN(nn.Module):
    r"""Kolmogorov-Arnold network, whose output starts at zero.

    Layers of edges :math:`\phi(x) = w \, \mathrm{silu}(x) + \sum_i c_i B_k(x / \Delta - i)`,
    one for each pair of an input and an output, with B-splines on a uniform grid over [-3, 3].
    Beyond the grid the splines fall to zero smoothly over `order` more cells, and only the
    SiLU is left. The last layer starts at zero, so that the layer it conditions starts as the
    identity.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        hidden_features: width between layers.
        num_layers: number of layers of edges.
        grid_size: number of grid cells.
        order: degree of the splines, 1 to 3.
        context_features: size of a context that is read beside the input; 0 for none.

    Shapes: (..., in_features) and (..., context_features) in, (..., out_features) out; the
        context broadcasts.

    Raises:
        ValueError: an order other than 1, 2 or 3; no layer; no grid cell; an input or a
            context of another shape; a context that is missing.

    References:
        Liu et al., KAN: Kolmogorov-Arnold networks, 2024 (https://arxiv.org/abs/2404.19756)

    Example:
        >>> net = KAN(4, 6, hidden_features=32)
        >>> net(torch.randn(10, 4)).shape
        torch.Size([10, 6])
        >>> layer = mb.Coupling(48, mb.RationalQuadratic(), net=mb.nets.KAN)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden_features: int = 128,
        num_layers: int = 2,
        grid_size: int = 5,
        order: int = 3,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        if order not in (1, 2, 3):
            raise ValueError(f"KAN: order must be 1, 2 or 3, got {order}")
        check_size("KAN", "num_layers", num_layers, least=1)
        check_size("KAN", "grid_size", grid_size, least=1)
        check_size("KAN", "hidden_features", hidden_features, least=1)
        self.in_features = in_features
        self.context_features = context_features
        hidden = [hidden_features] * (num_layers - 1)
        sizes = [in_features + context_features, *hidden, out_features]
        self.layers = nn.ModuleList(_Edges(*pair, grid_size, order) for pair in pairwise(sizes))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = concatenate_context("KAN", x, context, self.in_features, self.context_features)
        for layer in self.layers:
            x = layer(x)
        return x


class _Edges(nn.Module):
    """One layer: the sum over inputs of an edge for each output."""

    def __init__(self, in_features: int, out_features: int, grid_size: int, order: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.grid_size, self.order = grid_size, order
        num_splines = grid_size + order
        self.base = nn.Parameter(torch.empty(out_features, in_features))
        self.splines = nn.Parameter(torch.empty(out_features, num_splines, in_features))
        # Variances of about a third and a hundredth of that of unit inputs.
        bound = in_features**-0.5
        nn.init.uniform_(self.base, -bound, bound)
        nn.init.normal_(self.splines, std=0.1 * bound)

    def forward(self, x: Tensor) -> Tensor:
        # Splines before features: the memory runs along the features, which are many.
        basis = uniform_basis(
            (x + _BOUND) * (self.grid_size / (2 * _BOUND)), self.grid_size, self.order
        )
        splines = F.linear(basis.flatten(-2), self.splines.flatten(1))
        return splines + F.linear(F.silu(x), self.base)
