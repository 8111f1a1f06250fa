"""Changes the class of a layer to one with faster methods, and changes it back."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from .equations import method_of

__all__ = ["Faster", "exchange", "give_back", "is_known"]


class Faster:
    """Base class of methods that replace those of a layer, with equal results in less time.

    The class of the layer becomes one that is derived from this class and from the layer's
    class. So the layer keeps its parameters and its place in the model, `isinstance` gives the
    same answers, and replicas, copies and pickles run the faster methods as well. Methods set
    on the instance would stay bound to the original layer in all of its copies.

    Attributes:
        known: for each method, the functions of normflows and nflows that can be replaced; a
            layer with any other method keeps its class.
        state: attributes that the faster methods add to an instance, which `give_back` removes.
    """

    known: ClassVar[Mapping[str, tuple[Callable[..., Any], ...]]]
    state: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def accepts(cls, layer: Any) -> bool:
        """Whether the settings of a layer are supported, and the faster methods save time."""
        return True

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Pickle cannot find the derived class by its name, so it stores the pair of bases.
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        return _new, type(self).__bases__, *reduced[2:]


def exchange(layer: nn.Module, faster: type[Faster]) -> bool:
    """Give `layer` the methods of `faster` if they fit it; returns whether it has them now."""
    if isinstance(layer, faster):
        return True
    if isinstance(layer, Faster) or not is_known(layer, faster) or not faster.accepts(layer):
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


def is_known(layer: nn.Module, faster: type[Faster]) -> bool:
    """Whether a layer runs by the methods that those of `faster` replace."""
    return all(
        any(method_of(layer, name) is function for function in functions)
        for name, functions in faster.known.items()
    )


def _derived(faster: type[Faster], own: type[nn.Module]) -> Any:
    if (faster, own) not in _DERIVED:
        names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        _DERIVED[faster, own] = type(own.__name__, (faster, own), names)
    return _DERIVED[faster, own]


# One derived class for each pair, so that layers of one class stay of one class.
_DERIVED: dict[tuple[type, type], type] = {}


def _new(faster: type[Faster], own: type[nn.Module]) -> Any:
    derived = _derived(faster, own)
    return derived.__new__(derived)
