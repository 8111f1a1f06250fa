"""What a layer says when it is handed the wrong thing."""

import sys

import torch
from torch import Tensor, nn

__all__ = [
    "check_builder",
    "check_conditioned",
    "check_context",
    "check_input",
    "check_univariate",
    "format_shape",
    "is_concrete",
    "is_readable",
    "is_traced",
]


def format_shape(*event: int | str) -> str:
    """The shape of a batch of events, as messages spell it: ``(batch, 3, 32, 32)``."""
    return f"({', '.join(str(size) for size in ('batch', *event))})"


def check_input(layer: str, x: Tensor, *event: int | str, like: Tensor | None = None) -> None:
    """Refuse `x` unless it is floating point and of shape (batch, event...).

    An event size that is a string stands for any size and names it in the message. `like` is
    a parameter of the layer, which must not be of lower precision than `x`.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{layer}: expected a tensor, got {type(x).__name__}")
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
    if like is not None and torch.promote_types(x.dtype, like.dtype) != like.dtype:
        raise TypeError(
            f"{layer}: the input is {x.dtype}, the parameters are {like.dtype}; convert one, "
            "with x.float() or model.double()"
        )


def check_context(
    layer: str, context: Tensor | None, batch: int, context_features: int | str
) -> Tensor:
    """The context, unless it is missing or not of shape (batch, context_features).

    A string for `context_features` stands for any size and names it in the message.
    """
    if context is None:
        raise ValueError(
            f"{layer}: built with context_features={context_features} but called without "
            f"context; pass a context of shape ({batch}, {context_features})"
        )
    fits = context.dim() == 2 and context.shape[0] == batch
    # Sizes may be symbols, which messages and membership tests would turn into numbers.
    any_size = isinstance(context_features, str)
    if not (fits and (any_size or context_features == context.shape[1])):
        raise ValueError(
            f"{layer}: expected a context of shape ({batch}, {context_features}), "
            f"got {tuple(context.shape)}"
        )
    return context


def check_conditioned(
    layer: str,
    x: Tensor,
    event: tuple[int, ...],
    net: nn.Module,
    context: Tensor | None,
    context_features: int,
) -> tuple[torch.dtype, Tensor | None]:
    """Refuse what a layer with a conditioner cannot take.

    Returns the dtype of the net, and the context in it; None for a layer without context.
    """
    like = (*net.parameters(), x)[0]
    check_input(layer, x, *event, like=like)
    if not context_features:
        return like.dtype, None
    return like.dtype, check_context(layer, context, x.shape[0], context_features).to(
        like.dtype
    )


def check_univariate(layer: str, univariate: object) -> None:
    """Refuse what is not an elementwise bijection, its class included."""
    if isinstance(univariate, type):
        raise TypeError(
            f"{layer}: univariate must be an instance, {univariate.__name__}(), not the class"
        )
    if not (callable(univariate) and hasattr(univariate, "num_params")):
        raise TypeError(
            f"{layer}: univariate must be a bijection such as Affine(), got {univariate!r}"
        )


def check_builder(layer: str, name: str, build: object) -> None:
    """Refuse a module where what builds it from its sizes is wanted."""
    if isinstance(build, nn.Module):
        raise TypeError(
            f"{layer}: {name} must build a module from its sizes, got a "
            f"{type(build).__name__} that is built already; pass a class or a function"
        )


def is_traced() -> bool:
    """Whether what runs is recorded, to run again on other values."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    return proxies is not None and proxies.get_proxy_mode() is not None


def is_concrete(x: Tensor) -> bool:
    """Whether `x` has values that Python can look at."""
    return (
        not is_traced()
        and x.device.type != "meta"
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def is_readable(x: Tensor) -> bool:
    """Whether the values of `x` can be looked at without a wait or a break in a graph."""
    return is_concrete(x) and x.device.type == "cpu"
