"""The input of a conditioner beside its context."""

import torch
from torch import Tensor

__all__ = ["concatenate_context"]


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
