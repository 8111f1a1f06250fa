"""Gives a layer another class in place of its own, and gives it back."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from .equations import method_of

__all__ = ["Faster", "exchange", "give_back"]


class Faster:
    """Methods that compute what those of a layer compute, in less time.

    A layer gets a class derived from these and from its own, so that it keeps its parameters,
    its place in the model and its `isinstance`, while replicas, copies and pickles run the
    faster methods as well. Attributes set on the instance would hold on to the layer that they
    were made for.

    Attributes:
        known: the functions that each method must be for a layer to be exchanged.
        state: attributes of an instance that its own class does not know.
    """

    known: ClassVar[Mapping[str, tuple[Callable[..., Any], ...]]]
    state: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def accepts(cls, layer: Any) -> bool:
        """Whether the settings of a layer with the known methods are supported, and pay."""
        return True

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is not one that pickle could look up by its name.
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        return _new, type(self).__bases__, *reduced[2:]


def exchange(layer: nn.Module, faster: type[Faster]) -> bool:
    """Give `layer` the methods of `faster` if they fit; returns whether it has them."""
    if isinstance(layer, faster):
        return True
    if isinstance(layer, Faster) or not _is_known(layer, faster) or not faster.accepts(layer):
        return False
    layer.__class__ = _derived(faster, type(layer))
    return True


def give_back(layer: nn.Module) -> bool:
    """Give `layer` its own class back; returns whether it had another."""
    if not isinstance(layer, Faster):
        return False
    for name in layer.state:
        layer.__dict__.pop(name, None)
    layer.__class__ = type(layer).__bases__[1]
    return True


def _is_known(layer: nn.Module, faster: type[Faster]) -> bool:
    return all(
        any(method_of(layer, name) is function for function in functions)
        for name, functions in faster.known.items()
    )


def _derived(faster: type[Faster], own: type[nn.Module]) -> Any:
    if (faster, own) not in _DERIVED:
        names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        _DERIVED[faster, own] = type(own.__name__, (faster, own), names)
    return _DERIVED[faster, own]


# One class for each pair, so that layers of a kind stay of one class.
_DERIVED: dict[tuple[type, type], type] = {}


def _new(faster: type[Faster], own: type[nn.Module]) -> Any:
    derived = _derived(faster, own)
    return derived.__new__(derived)
