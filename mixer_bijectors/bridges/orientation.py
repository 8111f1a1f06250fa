"""Checks what models of nflows and normflows hold.

Refuses a flow among transforms of nflows, and the other way round: it would run backwards.
A flow of normflows maps latents to data in `forward`, a transform of nflows data to latents.
Both have the same two methods, so that either library runs what the other made without a word.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

from nflows.transforms import Transform
from normflows.flows import Flow
from torch import nn

from ..layers.alternation import warn_unless_alternating

__all__ = ["Owner", "check_child"]


class Owner(NamedTuple):
    """A module that runs its children as one of the two libraries does."""

    name: str
    package: str
    refused: type[nn.Module]
    adapter: str


# Lists that grow later, as that of nflows' MultiscaleCompositeTransform, and whose they are.
_lists: "WeakKeyDictionary[nn.Module, Owner]" = WeakKeyDictionary()


def check_child(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Called by torch whenever a module gets a child.

    Warns of couplings that never alternate in the models of either library.

    Raises:
        TypeError: the module runs its children one way, the child runs the other.
    """
    if type(submodule).__name__ == "OptimizedModule":  # of torch.compile
        submodule = getattr(submodule, "_orig_mod", submodule)
    if not isinstance(submodule, (Flow, Transform, nn.ModuleList)):
        return
    owner = _lists.get(module) if isinstance(module, nn.ModuleList) else _owner(module)
    if owner is None:
        return
    if not isinstance(submodule, nn.ModuleList):
        if isinstance(submodule, owner.refused):
            raise TypeError(
                f"{owner.name} of {owner.package} would run {type(submodule).__name__} "
                f"backwards; wrap it in mixer_bijectors.{owner.adapter}"
            )
        return
    _lists[submodule] = owner
    for child_name, child in submodule.named_children():
        check_child(submodule, child_name, child)
    # Said of the line that builds the owner, which assigns to an attribute in its __init__.
    warn_unless_alternating([submodule], name=owner.name, stacklevel=4)


def _owner(module: nn.Module) -> Owner | None:
    kind = type(module)
    package = ""
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if package in ("nflows", "normflows"):
            break
        # A class with methods of its own, as the adapters have, may run its children as it
        # likes.
        if any(callable(value) for name, value in vars(base).items() if name != "__init__"):
            return None
    if package == "nflows":
        return Owner(kind.__name__, package, Flow, "to_nflows")
    if package == "normflows":
        return Owner(kind.__name__, package, Transform, "from_nflows")
    return None
