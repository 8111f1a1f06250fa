"""Ways to run any flow, also one of normflows, with a log-determinant of shape (batch,)."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from normflows.flows import Flow
from torch import Tensor, nn

from ._checks import check_context
from ._dependencies import uncompiled
from .bijection import Bijection, complete_log_det, copy_if_same, split_result
from .declarations import context_features, reads_context, sampling_options

__all__ = [
    "Flow",
    "apply_flow",
    "apply_flows",
    "call_flow",
    "no_autocast",
]


def call_flow(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    inverse: bool = False,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Run one direction of `flow`.

    `context` is handed on if its signature takes one, and options of sampling if it declares
    them.
    """
    method = "inverse" if inverse else "forward"
    run = flow.inverse if inverse else flow  # calling the module runs its forward hooks
    if options:
        known = sampling_options([flow])
        options = {name: value for name, value in options.items() if name in known}
    if context is not None and reads_context(uncompiled(flow), method):
        return run(x, context=context, **options)
    return run(x, **options)


def apply_flow(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    inverse: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Run one direction of `flow`, with a log-determinant of shape (batch,).

    A log-determinant that is a number, a 0-d tensor or of shape (1,), as some layers of
    normflows return it, is broadcast to (batch,).

    Raises:
        TypeError: the flow returned something else than a tensor and its log-determinant.
        ValueError: it changed the batch size, or the number of dimensions of the events; the
            context that it declares is missing, or of another shape.
    """
    name = type(flow).__name__
    bare = uncompiled(flow)
    # A `Bijection` checks its context itself. Nets of normflows would run without one, and
    # fail in a sentence of torch's with one of another shape.
    if not isinstance(bare, Bijection) and (features := context_features(bare)):
        check_context(name, context, x.shape[0], features)
    result = call_flow(flow, x, context, inverse=inverse, **options)
    y, log_det = split_result(name, x, result)
    if prod(y.shape[1:]) != prod(x.shape[1:]):
        raise ValueError(
            f"{name}: events of shape {tuple(x.shape[1:])} became {tuple(y.shape[1:])}, of "
            "another number of dimensions, so that it is no bijection of them; build it for "
            "events of this shape"
        )
    return copy_if_same(y, x), complete_log_det(name, x, log_det)


def apply_flows(
    flows: nn.ModuleList | Sequence[Flow],
    x: Tensor,
    context: Tensor | None = None,
    *,
    inverse: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Run flows one after the other, `flows[0]` first, or last when `inverse`.

    A list that `reversible` has made has an attribute `whole`, which runs all of them without
    keeping activations. It takes no options of sampling, so with options the flows run one by
    one.
    """
    whole = getattr(flows, "whole", None)
    if whole is not None and not options:
        return whole.run(x, context, inverse=inverse)
    total = x.new_zeros(x.shape[:1])
    for flow in reversed(flows) if inverse else flows:
        x, log_det = apply_flow(flow, x, context, inverse=inverse, **options)
        total = total + log_det
    return x, total


def no_autocast(x: Tensor) -> torch.autocast:
    """Turn autocast off, since a bijection that is computed in bfloat16 does not invert."""
    device = "cpu" if x.device.type == "meta" else x.device.type
    return torch.autocast(device, enabled=False)
