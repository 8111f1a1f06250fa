"""A picture of a flow or of a model of flows as text: its layers, their sizes and options."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ._dependencies import child_modules, uncompiled

__all__ = ["describe", "format_event"]

# Arguments that are part of the size of a layer.
_SIZES = ("features", "in_features", "num_patches", "out_features")


@dataclass(frozen=True)
class _Part:
    """A module in the picture. Parts of equal `make` differ in sizes alone."""

    make: tuple[Any, ...]
    size: str
    parameters: int
    parts: tuple[tuple[str, "_Part"], ...]

    def __str__(self) -> str:
        count = f"{self.parameters:,} parameters" if self.parameters else ""
        told = ", ".join(filter(None, (self.size, *self.make[1], count)))
        return f"{self.make[0]}({told})" if told else str(self.make[0])


def describe(module: nn.Module) -> str:
    """The class, the sizes, the options and the number of parameters of a module and its parts.

    Each part is a line. Layers in a row that are equal in all of this share one line, and so
    do rows of layers that repeat. Parts of a layer are shown once: the next layer that differs
    from it in sizes alone refers to it. A net is one line, with the width of its first layer.
    """
    part = _read(module)
    return "\n".join([str(part), *_lines(part.parts, "  ", {part.make})])


def _read(module: nn.Module) -> _Part:
    children = _children(module)
    if len(children) == 1 and isinstance(children[0][1], nn.ModuleList):
        children = _children(children[0][1])
    is_flow = _is_flow(module)
    holds_flows = is_flow or any(_is_flow(child) for _, child in children)
    parts = tuple((name, _read(child)) for name, child in children) if holds_flows else ()
    size = _shape(module) if is_flow else _width(module)
    options = tuple(_options(module, size_known=bool(size)))
    make = (type(module).__name__, options, tuple((name, part.make) for name, part in parts))
    return _Part(make, size, _count(module), parts)


def _lines(
    parts: Sequence[tuple[str, _Part]], indent: str, shown: set[Any], longest: int = 8
) -> Iterator[str]:
    """The lines of the parts; the parts of those of a make in `shown` have been shown."""
    start = 0
    while start < len(parts):
        period, times = _repetition([part for _, part in parts[start:]], longest)
        end = start + period * times
        first, last = parts[start][0], parts[end - 1][0]
        names = f"({first})" if end == start + 1 else f"({first}-{last})"
        if period > 1:
            yield f"{indent}{names}: {times} times"
            yield from _lines(parts[start : start + period], indent + "  ", shown, period - 1)
        else:
            part = parts[start][1]
            known = part.parts and part.make in shown
            repeated = f"{times} x " if times > 1 else ""
            yield f"{indent}{names}: {repeated}{part}{', parts as above' if known else ''}"
            if not known:
                shown.add(part.make)
                yield from _lines(part.parts, indent + "  ", shown)
        start = end


def _repetition(parts: Sequence[_Part], longest: int) -> tuple[int, int]:
    """The length of the sequence that the list starts with repeatedly, and how often."""
    best = (1, 1)
    for period in range(1, min(longest, len(parts) // 2) + 1):
        times = 1
        while parts[times * period : (times + 1) * period] == parts[:period]:
            times += 1
        if times > 1 and times * period > best[0] * best[1]:
            best = (period, times)
    return best


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    # What is not built to the end, or comes from an older file, may lack any attribute.
    return [
        (name, uncompiled(child))
        for name, child in child_modules(module).items()
        if child is not None
    ]


def _is_flow(module: nn.Module) -> bool:
    """Whether a module is a flow, or a list that holds some."""
    is_list = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    return hasattr(type(module), "inverse") or (
        is_list and any(_is_flow(child) for _, child in _children(module))
    )


def _shape(module: nn.Module) -> str:
    """The declared shape of an event, and of a latent where that is another."""
    event, latent = (vars(module).get(f"{name}_shape") for name in ("event", "latent"))
    if event is None:
        return ""
    if latent in (None, event):
        return format_event(event)
    return f"data {format_event(event)}, latents {format_event(latent)}"


def format_event(shape: Sequence[int | None]) -> str:
    """The shape of an event, where None is an axis of any size."""
    sizes = ("any" if size is None else str(size) for size in shape)
    return f"({', '.join(sizes)}{',' if len(shape) == 1 else ''})"


def _width(net: nn.Module) -> str:
    """Sizes of the input, of the output and of the first hidden layer of a net."""
    kept = map(vars, net.modules())
    linear = [one for one in kept if "in_features" in one and "out_features" in one]
    if len(linear) < 2:
        return ""
    first, last = linear[0], linear[-1]
    return f"{first['in_features']} to {last['out_features']}, width {first['out_features']}"


def _options(module: nn.Module, *, size_known: bool) -> Iterator[str]:
    """Arguments of the constructor that the module keeps, other than sizes and defaults."""
    kept = vars(module)
    if type(module).extra_repr is not nn.Module.extra_repr and "_modules" in kept:
        yield module.extra_repr()
        return
    try:
        arguments = inspect.signature(type(module).__init__).parameters
    except (TypeError, ValueError):  # of what is not written in Python
        return
    for name, argument in arguments.items():
        value = kept.get(name)
        if name == "univariate" and value is not None:
            # The text of a plain object holds its address.
            plain = " at 0x" in repr(value)
            yield type(value).__name__ if plain else repr(value)
        elif name == "context_features" or (size_known and name in _SIZES):
            continue
        elif isinstance(value, tuple):
            if len(value) < 5 and value != kept.get("event_shape"):
                yield f"{name}={value}"
        elif isinstance(value, bool | int | float | str) and value != argument.default:
            yield f"{name}={value!r}"
    size = kept.get("context_features")
    if isinstance(size, int) and size:
        yield f"context_features={size}"


def _count(module: nn.Module) -> int:
    if "_modules" not in vars(module):
        return 0
    return sum(0 if is_lazy(p) else p.numel() for p in module.parameters())
