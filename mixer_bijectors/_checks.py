"""Checks of arguments and inputs, with errors that name the layer and what to change."""

import sys
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._dependencies import in_dispatch_mode, is_function_transformed

__all__ = [
    "check_builder",
    "check_context",
    "check_event",
    "check_flag",
    "check_input",
    "check_number",
    "check_precision",
    "check_size",
    "check_univariate",
    "event_axes",
    "format_shape",
    "has_values",
    "imported_class",
    "is_concrete",
    "is_readable",
    "is_traced",
]


# What the axes of an event are called, by their number.
_AXES = {
    1: ("features",),
    2: ("patches", "features"),
    3: ("channels", "height", "width"),
}


def event_axes(number: int) -> tuple[str, ...]:
    """The names of the axes of an event."""
    return _AXES.get(number, ("any",) * number)


def check_size(name: str, argument: str, size: object, *, least: int) -> None:
    """Refuse a number of features, blocks and so on that is not whole, or too small."""
    if isinstance(size, bool) or not isinstance(size, Integral) or size < least:
        raise ValueError(
            f"{name}: {argument} must be a whole number from {least}, got {size!r}"
        )


def check_flag(name: str, argument: str, flag: object) -> None:
    """Refuse a list for all features, a word and so on, which would count as true."""
    # Loops write i % 2.
    if not (isinstance(flag, Integral | np.bool_) and flag in (0, 1)):
        raise TypeError(f"{name}: {argument} must be True or False, got {flag!r}")


def check_number(name: str, argument: str, value: object) -> None:
    """Refuse what does not compare with numbers: text, None, a tensor of more than one."""
    is_scalar = isinstance(value, Tensor) and value.dim() == 0
    if not (is_scalar or isinstance(value, Real)):
        raise TypeError(f"{name}: {argument} must be a number, got {value!r}")


def format_shape(*event: int | str) -> str:
    """The shape of a batch of events, as messages spell it: ``(batch, 3, 32, 32)``."""
    return f"({', '.join(str(size) for size in ('batch', *event))})"


def check_tensor(name: str, x: Tensor) -> None:
    """Refuse `x` unless it is a floating point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating point tensor, got {x.dtype}; "
            "convert it with x.float(), or 8-bit images with images.dequantize(x)"
        )


def check_event(name: str, x: Tensor, event: tuple[int | None, ...] | None) -> None:
    """Refuse `x` unless it is a floating point tensor of shape (batch, *event).

    None allows an axis of any size, or an event of any shape.
    """
    check_tensor(name, x)
    if event is None:
        if x.dim() == 0:
            raise ValueError(f"{name}: expected a batch, got a tensor of shape ()")
        return
    axes = event_axes(len(event))
    if x.dim() != len(event) + 1:
        wanted = (axis if size is None else size for axis, size in zip(axes, event))
        raise ValueError(
            f"{name}: expected shape {format_shape(*wanted)}, got {tuple(x.shape)}"
        )
    for axis, want, got in zip(axes, event, x.shape[1:]):
        if want is None or want == got:
            continue
        if None in event:
            raise ValueError(
                f"{name}: expected {want} {axis}, got {got} in an input of shape "
                f"{tuple(x.shape)}"
            )
        raise ValueError(
            f"{name}: expected shape {format_shape(*map(str, event))}, got {tuple(x.shape)}"
        )


def check_precision(name: str, x: Tensor, like: Tensor) -> None:
    """Refuse `x` of higher precision than `like`, a parameter of the layer."""
    if torch.promote_types(x.dtype, like.dtype) != like.dtype:
        raise TypeError(
            f"{name}: the input is {x.dtype}, the parameters are {like.dtype}; convert one, "
            "with x.float() or model.double()"
        )


def check_input(layer: str, x: Tensor, *event: int | str, like: Tensor | None = None) -> None:
    """Refuse `x` unless it is floating point and of shape (batch, event...).

    An event size that is a string allows any size and names it in the message. `like` is
    a parameter of the layer, which must not be of lower precision than `x`.
    """
    check_tensor(layer, x)
    fits = x.dim() == len(event) + 1 and all(
        isinstance(want, str) or want == got for want, got in zip(event, x.shape[1:])
    )
    if not fits:
        raise ValueError(
            f"{layer}: expected shape {format_shape(*event)}, got {tuple(x.shape)}"
        )
    if like is not None:
        check_precision(layer, x, like)


def check_context(
    name: str, context: Tensor | None, batch: int, context_features: int | None
) -> Tensor:
    """The context, unless it is missing or not of shape (batch, context_features).

    A layer that reads none, or does not know of what size, hence 0 or None, gets one of any
    shape with a row for each sample, or with one for all.
    """
    if context_features and context is None:
        raise ValueError(
            f"{name}: built with context_features={context_features} but called without "
            f"context; pass a context of shape ({batch}, {context_features})"
        )
    if not isinstance(context, Tensor):
        raise TypeError(
            f"{name}: expected the context to be a tensor, got {type(context).__name__}"
        )
    # Sizes may be symbols: a membership test, or a message that is not raised, would turn
    # them into numbers.
    if context_features:
        fits = context.dim() == 2 and context.shape[1] == context_features
        fits = fits and context.shape[0] == batch
    else:
        fits = context.dim() > 0 and (context.shape[0] == batch or context.shape[0] == 1)
    if not fits:
        raise ValueError(
            f"{name}: expected a context of shape ({batch}, {context_features or 'any'}), got "
            f"{tuple(context.shape)}"
        )
    return context


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


def check_output(layer: str, output: object, *shape: int) -> None:
    """Refuse what a net of the user's returned, unless it is a tensor of this shape.

    Another one might broadcast, so that samples or features would share their parameters.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"{layer}: the net must return a tensor, got {type(output).__name__}")
    # Axis by axis, since sizes may be symbols.
    if output.dim() != len(shape) or any(a != b for a, b in zip(output.shape, shape)):
        raise ValueError(
            f"{layer}: the net must return shape {tuple(shape)}, got {tuple(output.shape)}"
        )


def replaces_methods(module: nn.Module) -> bool:
    """Whether a method of the class is hidden by an attribute of the instance."""
    return any(callable(getattr(type(module), name, None)) for name in module.__dict__)


def imported_class(module: str, name: str) -> Any:
    """A class for isinstance, without an import: () where nobody has imported its module."""
    return getattr(sys.modules.get(module), name, ())


def is_traced() -> bool:
    """Whether operations are recorded as a graph, to run again on other values."""
    return torch.compiler.is_compiling() or is_recorded()


def is_recorded() -> bool:
    """Whether a graph is made of the operations that run now, for this state of the modules.

    That of torch.compile is not: it is made anew where a Python flag has changed.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    return proxies is not None and proxies.get_proxy_mode() is not None


def is_concrete(x: Tensor) -> bool:
    """Whether `x` has values that Python can look at."""
    return not is_traced() and x.device.type != "meta" and not is_function_transformed(x)


def has_values(x: Tensor) -> bool:
    """Whether the values of `x` can be looked at without breaking a graph."""
    # Fake tensors have no values, nor has any tensor while their mode is active. They come
    # first, since a fake tensor on a GPU needs no driver, which is asked for captures.
    if not is_concrete(x) or type(x) not in (Tensor, nn.Parameter) or in_dispatch_mode():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def is_readable(x: Tensor) -> bool:
    """Whether the values of `x` can be looked at without a host synchronisation, too."""
    return x.device.type == "cpu" and has_values(x)
