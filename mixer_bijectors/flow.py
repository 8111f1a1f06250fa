"""How any flow is run, ours or foreign: context if it takes one, always a full log_det."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from normflows.flows import Flow
from torch import Tensor, nn

from ._alternation import warn_unless_alternating

__all__ = [
    "Chain",
    "Flow",
    "apply_flow",
    "apply_flows",
    "call_flow",
    "no_autocast",
    "reads_context",
]


@torch.compiler.assume_constant_result
def _takes_context(flow_type: type, method: str) -> bool:
    return _signature_takes_context(getattr(flow_type, method))


@functools.cache
def _signature_takes_context(function: Callable[..., object]) -> bool:
    parameters = inspect.signature(function).parameters
    return "context" in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )


def reads_context(module: nn.Module) -> bool:
    """Whether `module` is a flow that does more with a context than hand it on or ignore it.

    Ours say so by `context_features`; of foreign ones, whose signature takes it.
    """
    if not isinstance(module, Flow):
        return False
    if type(module).__module__.startswith(__package__ + "."):
        return bool(getattr(module, "context_features", 0))
    return _takes_context(type(module), "inverse")


def call_flow(
    flow: Flow, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
) -> tuple[Tensor, Any]:
    """Run one direction of `flow`; `context` is handed on if its signature takes one."""
    method = "inverse" if inverse else "forward"
    run = flow.inverse if inverse else flow  # calling the module runs its forward hooks
    # A compiled module has the methods of the one that it wraps.
    flow_type = type(getattr(flow, "_orig_mod", flow))
    if context is not None and _takes_context(flow_type, method):
        return run(x, context=context)
    return run(x)


def apply_flow(
    flow: Flow, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run one direction of `flow` by this library's conventions, whatever its own are.

    A log-determinant that is a number, a 0-d tensor or of shape (1,), as some layers of
    normflows return it, is broadcast to (batch,).
    """
    y, log_det = call_flow(flow, x, context, inverse=inverse)
    batch = len(x)
    if not isinstance(log_det, Tensor):
        return y, x.new_full((batch,), log_det)
    if log_det.shape not in ((), (1,), (batch,)):
        raise ValueError(
            f"{type(flow).__name__} returned a log_det of shape {tuple(log_det.shape)} for a "
            f"batch of {batch}; expected ({batch},)"
        )
    return y, log_det.to(x).expand(batch).contiguous()


def apply_flows(
    flows: nn.ModuleList, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run flows one after the other, `flows[0]` first, or last when `inverse`."""
    total = x.new_zeros(x.shape[:1])
    for flow in reversed(flows) if inverse else flows:
        x, log_det = apply_flow(flow, x, context, inverse=inverse)
        total = total + log_det
    return x, total


def no_autocast(x: Tensor) -> torch.autocast:
    """Keep a bijection's own arithmetic in the precision of `x`: bfloat16 does not invert."""
    device = "cpu" if x.device.type == "meta" else x.device.type
    return torch.autocast(device, enabled=False)


class Chain(Flow):
    r"""Composition of flows in the order of normflows: `forward` applies `flows[0]` first.

    Unlike `normflows.flows.Composite` it hands `context` on, to the flows that take one, and
    its log-determinant lives on the device and in the dtype of the input.

    Args:
        flows: the flows to compose, ours or foreign; each maps events of the shape that the
            one before it returns.

    Example:
        >>> flow = Chain([mb.LULinear(6), mb.ActNorm(6)])
        >>> x, log_det = flow(torch.randn(10, 6))
        >>> x.shape, log_det.shape
        (torch.Size([10, 6]), torch.Size([10]))
    """

    def __init__(self, flows: Iterable[Flow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        warn_unless_alternating(self.flows, name="Chain", stacklevel=2)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flows(self.flows, z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flows(self.flows, x, context, inverse=True)
