"""Tests on one batch whether the other direction of a layer reconstructs its input."""

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import torch
from normflows.flows import Residual
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..flow import apply_flow
from ..layers.continuous import ContinuousFlow
from .parallel_inverse import ParallelLayer
from .random_state import RandomState

__all__ = ["Treatment", "Way", "treatment_of"]

_ITERATIVE = (Residual, ContinuousFlow, ParallelLayer)
# The other direction counts as sequential if it calls more than this many times as many
# functions of torch.
_SEQUENTIAL_RATIO = 3


class Way(Enum):
    """The ways in which the backward pass of a layer obtains the input of the layer."""

    UNDONE = "its input is reconstructed from its output"
    KEPT = "its input is kept"
    PLAIN = "autograd keeps what it needs"


class Treatment(NamedTuple):
    """The way chosen for a layer, with the reason if its input is not reconstructed."""

    way: Way
    reason: str = ""


@torch.no_grad()
def treatment_of(
    layer: nn.Module, x: Tensor, context: Tensor | None, *, inverse: bool
) -> Treatment:
    """Choose the treatment of a layer by running both of its directions on a batch.

    Afterwards the generators of random numbers are as before, and the buffers of the layer are
    as after one pass, so that `ActNorm` stays initialised. Buffers that every pass changes are
    as before. The comparison of the batch synchronises with the host.
    """
    before = _copies(layer)
    with RandomState(x.device).replayed():
        apply_flow(layer, x, context, inverse=inverse)  # initialises ActNorm
        # Compared by values, since batch normalisation changes its buffers without raising the
        # version counter of the tensors.
        first = _copies(layer)
        with _Count() as count:
            y, _ = apply_flow(layer, x, context, inverse=inverse)
        changed = [name for name, b in layer.named_buffers() if not b.equal(first[name])]
        if changed:
            for name in changed:
                layer.get_buffer(name).copy_(before[name])
            return Treatment(Way.PLAIN, "each pass changes its buffers")
        # In half precision and in solvers the reconstruction would drift, or take a pass for
        # each feature.
        if x.dtype in (torch.float16, torch.bfloat16):
            return Treatment(Way.KEPT, f"{x.dtype} is too coarse")
        if any(isinstance(module, _ITERATIVE) for module in layer.modules()):
            return Treatment(Way.KEPT, "it is solved by iteration")
        try:
            with _Count(_SEQUENTIAL_RATIO * count.calls):
                back, _ = apply_flow(layer, y, context, inverse=not inverse)
        except _TooLongError:
            return Treatment(Way.KEPT, "its other direction is sequential")
        except Exception as error:
            return Treatment(Way.KEPT, f"its other direction raises {type(error).__name__}")
    if back.shape != x.shape:
        return Treatment(Way.KEPT, "its other direction returns another shape")
    bound = torch.finfo(x.dtype).eps ** (2 / 3)
    finite = x.isfinite()
    off, size = (t.abs().where(finite, 0.0).amax() for t in (back - x, x))
    if bool(off <= bound * size.clamp(min=1)):
        return Treatment(Way.UNDONE)
    return Treatment(Way.KEPT, f"its round trip is not exact to {bound:.1e}")


class _TooLongError(Exception):
    """More functions were called than are allowed."""


class _Count(TorchFunctionMode):
    """Counts calls of functions of torch, and raises when there are more than `most`."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.calls = 0
        self.most = most

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        if self.most is not None and self.calls > self.most:
            raise _TooLongError
        return function(*args, **(kwargs or {}))


def _copies(layer: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}
