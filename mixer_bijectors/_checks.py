"""What a layer says when it is handed the wrong thing."""

import torch
from torch import Tensor

__all__ = ["check_context", "check_input", "format_shape"]


def format_shape(*event: int | str) -> str:
    """The shape of a batch of events, as messages spell it: ``(batch, 3, 32, 32)``."""
    return f"({', '.join(str(size) for size in ('batch', *event))})"


def check_input(layer: str, x: Tensor, *event: int | str) -> None:
    """Refuse `x` unless it is floating point and of shape (batch, event...).

    An event size that is a string stands for any size and names it in the message.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"{layer}: expected a floating point tensor, got {x.dtype}; "
            "convert it with x.float(), or 8-bit images with images.dequantize(x)"
        )
    fits = x.dim() == len(event) + 1 and all(
        isinstance(want, str) or want == got for want, got in zip(event, x.shape[1:])
    )
    if not fits:
        raise ValueError(
            f"{layer}: expected shape {format_shape(*event)}, got {tuple(x.shape)}"
        )


def check_context(
    layer: str, context: Tensor | None, batch: int, context_features: int
) -> None:
    """Refuse a context that is missing or is not of shape (batch, context_features)."""
    want = f"({batch}, {context_features})"
    if context is None:
        raise ValueError(
            f"{layer}: built with context_features={context_features} but called without "
            f"context; pass a context of shape {want}"
        )
    if context.shape != torch.Size((batch, context_features)):
        raise ValueError(
            f"{layer}: expected a context of shape {want}, got {tuple(context.shape)}"
        )
