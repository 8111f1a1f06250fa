"""The inputs of conditioners: vectors and a context beside them, and grids of patches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import check_size

__all__ = ["concatenate_context", "patch_count", "patch_grid"]


def patch_count(net: str, num_patches: int | Sequence[int]) -> int:
    """The number of patches, from itself or from the (rows, columns) of their grid."""
    sizes = num_patches if isinstance(num_patches, Sequence) else (num_patches,)
    for size in sizes:
        check_size(net, "num_patches", size, least=1)
    return math.prod(sizes)


def patch_grid(net: str, num_patches: int | Sequence[int]) -> tuple[int, int]:
    """The (rows, columns) of the grid of patches, from themselves or from a square number."""
    count = patch_count(net, num_patches)
    side = math.isqrt(count)
    sizes = tuple(num_patches) if isinstance(num_patches, Sequence) else (side, side)
    if len(sizes) != 2 or math.prod(sizes) != count:
        raise ValueError(
            f"{net}: num_patches must be the (rows, columns) of the grid of patches, or their "
            f"number where that is square, got {num_patches}"
        )
    return sizes


def concatenate_context(
    net: str, x: Tensor, context: Tensor | None, in_features: int, context_features: int
) -> Tensor:
    """`x` and the context, concatenated; the context broadcasts over leading axes."""
    if x.shape[-1:] != (in_features,):
        raise ValueError(f"{net}: expected shape (..., {in_features}), got {tuple(x.shape)}")
    if context is None and not context_features:
        return x
    if context is None:
        raise ValueError(
            f"{net}: built with context_features={context_features} but called without context"
        )
    leading = x.shape[:-1]
    offered = context.shape[:-1]
    broadcasts = len(offered) <= len(leading) and all(
        a == 1 or a == b for a, b in zip(offered[::-1], leading[::-1])
    )
    if not (broadcasts and context_features and context.shape[-1:] == (context_features,)):
        raise ValueError(
            f"{net}: built with context_features={context_features} and called with x of shape "
            f"{tuple(x.shape)} and a context of shape {tuple(context.shape)}"
        )
    return torch.cat((x, context.to(x.dtype).expand(*leading, context_features)), dim=-1)
