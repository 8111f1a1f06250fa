"""The shape of an event on the other side of a flow, found without changing the flow."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from .._checks import format_shape
from .._dependencies import hook_tables, uncompiled
from ..declarations import shapes_agree
from ..flow import Flow, call_flow

__all__ = ["map_shape"]


def map_shape(
    name: str,
    flow: Flow,
    event: torch.Size,
    context: Tensor | None,
    *,
    same_dim: bool,
    inverse: bool,
) -> torch.Size:
    """The shape that `flow` gives to an event: of data, or if `inverse` of latents.

    It is what the flow declares. Where it declares nothing, a copy of the flow is run, so that
    parameters, buffers, modes and random numbers stay as they are, and no hook is called.

    Args:
        name: the function to name in messages.
        context: that of one event, for a conditional flow.
        same_dim: whether events have as many dimensions on both sides.

    Raises:
        ValueError: the flow declares events of another shape.
    """
    flow = uncompiled(flow)
    shapes = getattr(flow, "latent_shape", None), getattr(flow, "event_shape", None)
    given, wanted = reversed(shapes) if inverse else shapes
    if given is not None and not shapes_agree(event, given):
        raise ValueError(
            f"{name}: {type(flow).__name__} takes {'data' if inverse else 'latents'} of shape "
            f"{format_shape(*('any' if size is None else size for size in given))}, got events "
            f"of shape {tuple(event)}; give the base distribution another shape, or "
            f"{name} another event_dim"
        )
    if same_dim and (len(event) == 1 or (given is not None and given == wanted)):
        return event  # A bijection of vectors keeps their size.
    if wanted is not None and None not in wanted:
        return torch.Size(wanted)
    return _run_copy(flow, event, context, inverse)


def _run_copy(
    flow: Flow, event: torch.Size, context: Tensor | None, inverse: bool
) -> torch.Size:
    # Layers of normflows initialise themselves in evaluation mode, too, and replace the data of
    # their parameters, so a copy is run. It gets no hooks.
    memo: dict[int, Any] = {}
    for module in flow.modules():
        memo |= {id(hooks): OrderedDict() for hooks in hook_tables(module)}
        # deepcopy refuses tensors with a graph.
        tensors = [value for value in vars(module).values() if isinstance(value, Tensor)]
        memo |= {id(tensor): tensor.detach().clone() for tensor in tensors}
    copied = copy.deepcopy(flow, memo).eval()
    state = [*flow.parameters(), *flow.buffers()]
    like = next(filter(torch.is_floating_point, state), torch.empty(()))
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        # One half lies in the domain of a logarithm, of a logit and of what is bounded, and two
        # samples have a standard deviation.
        probe = like.new_full((2, *event), 0.5)
        context = context if context is None else context.expand(2, -1)
        return call_flow(copied, probe, context, inverse=inverse)[0].shape[1:]
