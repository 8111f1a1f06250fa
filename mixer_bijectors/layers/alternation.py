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
from .matrix_coupling import MatrixCoupling

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
    couplings, mixed = 0, False
    kept: tuple[bool, object, str] = (False, None, "features")
    keeps: tuple[bool, object, str]
    for flow in _flatten(flows):
        if isinstance(flow, MatrixCoupling):
            keeps = bool(flow.reverse), flow.halves, flow.axis
        elif isinstance(flow, Coupling):
            keeps = bool(flow.reverse), None, "features"
        else:
            mixed = mixed or _mixes(flow)
            continue
        if couplings and (mixed or keeps != kept):
            return
        couplings, kept, mixed = couplings + 1, keeps, False
    if couplings > 1:
        reverse, halves, axis = kept
        warnings.warn(
            f"{name}: all {couplings} couplings transform the same half of the {axis}, and "
            "no layer between them permutes or mixes (LULinear starts as the identity): "
            "the other half stays as it is. Give every other "
            f"{'MatrixCoupling' if halves else 'Coupling'} the option reverse={not reverse}",
            stacklevel=stacklevel + 1,
        )


def _flatten(flows: Iterable[nn.Module]) -> Iterator[nn.Module]:
    from ..chain import Chain  # here, since `chain` imports this module

    adapter = imported_class("mixer_bijectors.bridges.flow_as_transform", "FlowAsTransform")
    for flow in flows:
        flow = uncompiled(flow)
        if isinstance(flow, (nn.ModuleList, Chain, Composite, Reverse, adapter)):
            # Not by its truth, which a compiled layer takes for its length.
            yield from _flatten(c for c in child_modules(flow).values() if c is not None)
        else:
            yield flow


def _mixes(flow: nn.Module) -> bool:
    if isinstance(flow, LULinear):
        return not flow.identity_init
    return not isinstance(flow, (ActNorm, Elementwise))
