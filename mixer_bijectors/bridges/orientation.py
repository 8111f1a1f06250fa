"""Checks that flows of normflows and transforms of nflows are not mixed in one model.

A flow of normflows maps latents to data in `forward`, a transform of nflows data to latents.
Both have the same two methods, so that each library would run a layer of the other one
backwards, without an error.
"""

from normflows.flows import Flow
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .._checks import imported_class
from .._dependencies import uncompiled
from ..layers.alternation import warn_unless_alternating

__all__ = ["check_child", "watch"]

# Attribute of a list of layers that a model of either library holds: the name of the model's
# class and the library. Children that are added to the list later are checked with it, and it
# is part of copies and pickles of the list.
_OWNER = "_mixer_bijectors_owner"


def watch() -> None:
    """Check every child that any module gets from now on."""
    register_module_module_registration_hook(check_child)


def check_child(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Check a child before torch adds it to a module.

    Warns if all couplings of a model of either library transform the same half.

    Raises:
        TypeError: the module runs its children one way, the child runs the other.
    """
    child = uncompiled(child)
    transform = imported_class("nflows.transforms.base", "Transform")
    if not isinstance(child, (Flow, transform, nn.ModuleList)):
        return
    listed = isinstance(module, nn.ModuleList)
    owner = vars(module).get(_OWNER) if listed else _owner(type(module))
    if owner is None:
        return
    if isinstance(child, nn.ModuleList):
        vars(child)[_OWNER] = owner
        for child_name, grandchild in child.named_children():
            check_child(child, child_name, grandchild)
        if owner[1] != "mixer_bijectors":  # whose Chain says it itself
            # Of the line that builds the owner, which assigns to an attribute in its __init__.
            warn_unless_alternating([child], name=owner[0], stacklevel=4)
        return
    of_nflows = owner[1] == "nflows"
    if isinstance(child, Flow if of_nflows else transform):
        raise TypeError(
            f"{owner[0]} of {owner[1]} would run {type(child).__name__} backwards; wrap it in "
            f"mixer_bijectors.{'to_nflows' if of_nflows else 'from_nflows'}"
        )


def _owner(kind: type[nn.Module]) -> tuple[str, str] | None:
    """The name of a class, and the library whose methods run its children, if any."""
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        runs_flows = package == "mixer_bijectors" and vars(base).get("holds_flows")
        if runs_flows or package in ("nflows", "normflows"):
            return kind.__name__, package
        # A class with methods of its own, such as an adapter, may run its children in either
        # direction.
        if any(callable(value) for name, value in vars(base).items() if name != "__init__"):
            return None
    return None
