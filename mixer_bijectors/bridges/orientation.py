"""Checks what models of nflows and normflows hold.

Refuses a flow among transforms of nflows, and the other way round: it would run backwards.
A flow of normflows maps latents to data in `forward`, a transform of nflows data to latents.
Both have the same two methods, so that either library runs what the other made without a word.
"""

from normflows.flows import Flow
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .._checks import imported_class
from ..layers.alternation import warn_unless_alternating

__all__ = ["check_child", "watch"]

# What lies in the __dict__ of a list that a model of either library holds, since children may
# be added to it later: the name of the model's class and the library. So copies, also those by
# pickle, are watched as well.
_OWNER = "_mixer_bijectors_owner"


def watch() -> None:
    """From now on, check every child that a module gets."""
    register_module_module_registration_hook(check_child)


def check_child(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Called by torch whenever a module gets a child.

    Warns of couplings that never alternate in the models of either library.

    Raises:
        TypeError: the module runs its children one way, the child runs the other.
    """
    child = getattr(child, "_orig_mod", child)  # that of a compiled module
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
    """The name of a class and the library by whose methods it runs its children, if any."""
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        runs_flows = package == "mixer_bijectors" and vars(base).get("holds_flows")
        if runs_flows or package in ("nflows", "normflows"):
            return kind.__name__, package
        # A class with methods of its own, as the adapters have, may run its children as it
        # likes.
        if any(callable(value) for name, value in vars(base).items() if name != "__init__"):
            return None
    return None
