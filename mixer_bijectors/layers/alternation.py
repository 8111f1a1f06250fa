"""A warning of couplings that never transform one half of the features."""

import warnings
from collections.abc import Iterable, Iterator

from normflows.flows import Composite, Reverse
from torch import nn

from .._checks import imported_class
from .._dependencies import child_modules, uncompiled
from .actnorm import ActNorm
from .coupling import Coupling
from .elementwise import Elementwise
from .lu_linear import LULinear

__all__ = ["warn_unless_alternating"]


def warn_unless_alternating(flows: Iterable[nn.Module], *, name: str, stacklevel: int) -> None:
    """Warn if flows in a row hold several couplings, all of the same half, and none mixes.

    `ActNorm` and `Elementwise` keep features apart, and `LULinear` starts as the identity and
    learns to mix too slowly to replace the couplings that are missing. Any other layer is
    taken for one that mixes.

    Args:
        flows: in the order in which they run, either way.
        name: of what holds them, for the message.
        stacklevel: as that of `warnings.warn`, counted from the caller of this function.
    """
    couplings, half, mixed = 0, False, False
    for flow in _flatten(flows):
        if not isinstance(flow, Coupling):
            mixed = mixed or _mixes(flow)
            continue
        if couplings and (mixed or bool(flow.reverse) != half):
            return
        couplings, half, mixed = couplings + 1, bool(flow.reverse), False
    if couplings > 1:
        warnings.warn(
            f"{name}: all {couplings} couplings transform the same half of the features, and "
            "no layer between them permutes or mixes (LULinear starts as the identity): "
            "the other half stays as it is. Give every other Coupling the option reverse="
            f"{not half}",
            stacklevel=stacklevel + 1,
        )


def _flatten(flows: Iterable[nn.Module]) -> Iterator[nn.Module]:
    from ..chain import Chain  # here, since `chain` imports this module

    adapter = imported_class("mixer_bijectors.bridges.flow_as_transform", "FlowAsTransform")
    for flow in flows:
        flow = uncompiled(flow)
        if isinstance(flow, (nn.ModuleList, Chain, Composite, Reverse, adapter)):
            yield from _flatten(filter(None, child_modules(flow).values()))
        else:
            yield flow


def _mixes(flow: nn.Module) -> bool:
    if isinstance(flow, LULinear):
        return not flow.identity_init
    return not isinstance(flow, (ActNorm, Elementwise))
