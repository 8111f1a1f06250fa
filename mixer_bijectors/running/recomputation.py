"""Backpropagation through layers that keep no activations, and run again in backward."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._dependencies import without_tensor_hooks
from ..flow import apply_flow
from .conditioners import Conditioners
from .random_state import RandomState

__all__ = ["Pass", "anchor", "apply_without_graph"]


@dataclass
class Pass:
    """Values that the backward of one pass through a chain hands from layer to layer.

    `state` is the output of the layer that backward has reached. `drift` is the largest
    difference between a reconstructed state and the true one.
    """

    inverse: bool
    state: Tensor | None = None
    drift: Tensor | None = None

    def compare(self, state: Tensor) -> None:
        """Update `drift` by the difference between the reconstructed state and the true one."""
        if self.state is not None and state.numel():
            error = torch.linalg.vector_norm(self.state - state.detach(), torch.inf)
            self.drift = error if self.drift is None else torch.maximum(self.drift, error)


class _Call:
    """A call of a layer, which can be repeated with the same autocast and random numbers."""

    def __init__(self, layer: nn.Module, through: Pass, x: Tensor) -> None:
        self.layer = layer
        self.through = through
        self.device = x.device
        kind = "cpu" if x.device.type == "meta" else x.device.type
        # Autocast's cache would hold low-precision copies of all parameters, and it would hand
        # copies that were made without a graph to passes that need one.
        self.autocast: dict[str, Any] = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": False,
        }
        self.random: RandomState | None = None
        self.versions: list[tuple[Tensor, int]] = []

    def run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the layer, and record the state of random numbers and of its parameters."""
        before = RandomState(self.device)
        with torch.autocast(**self.autocast):
            results = apply_flow(self.layer, x, context, inverse=self.through.inverse)
        if before != RandomState(self.device):
            self.random = before
        self.versions = [(tensor, tensor._version) for tensor in _state(self.layer)]
        return results

    def run_again(
        self, x: Tensor, context: Tensor | None, conditioners: Conditioners
    ) -> tuple[Tensor, Tensor]:
        """Repeat the call with a graph for its gradients."""
        drawn = self.random.replayed() if self.random else nullcontext()
        with drawn, conditioners.replayed(), torch.enable_grad():
            return apply_flow(self.layer, x, context, inverse=self.through.inverse)

    def undo(self, context: Tensor | None, conditioners: Conditioners) -> Tensor:
        """Reconstruct the input of the layer from its output."""
        y: Any = self.through.state
        with torch.no_grad(), conditioners.recorded():
            return apply_flow(self.layer, y, context, inverse=not self.through.inverse)[0]

    def check_unchanged(self) -> None:
        now = _state(self.layer)
        same = len(now) == len(self.versions) and all(
            tensor is then and tensor._version == version
            for tensor, (then, version) in zip(now, self.versions)
        )
        if not same:
            raise RuntimeError(
                f"ReversibleChain: parameters or buffers of {type(self.layer).__name__} were "
                "replaced, or changed in place, between forward and backward, which runs the "
                "layer again; change them after backward"
            )


class _Step(torch.autograd.Function):
    """A layer that saves no activations, and its input only if it must.

    Each layer is a node of the graph, with its parameters as inputs. So autograd accumulates
    the gradients of one layer before it computes those of the next, and hooks on parameters
    run as usual. The sum of log-determinants runs through all nodes, which puts them in order
    even where nothing depends on the last state.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: _Call,
        keeps_input: bool,
        total: Tensor,
        x: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        y, log_det = call.run(x, context)
        # The other direction calls the nets in another order, and would draw other masks of
        # dropout; so a layer that draws random numbers keeps its input.
        keeps_input = keeps_input or call.random is not None
        ctx.save_for_backward(x if keeps_input else None, context)
        ctx.call, ctx.parameters = call, parameters
        ctx.set_materialize_grads(False)
        return y, total + log_det

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_total: Tensor | None) -> Any:
        call: _Call = ctx.call
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "ReversibleChain: second derivatives are not available, since states are "
                "reconstructed without a graph; take them through Chain(flows)"
            )
        x, context = ctx.saved_tensors
        call.check_unchanged()
        needs_x, needs_context, *needs = ctx.needs_input_grad[3:]
        context = None if context is None else context.detach().requires_grad_(needs_context)
        keeps_input = x is not None
        conditioners = Conditioners(() if keeps_input else (call.layer,))
        with torch.autocast(**call.autocast):
            if not keeps_input:
                x = call.undo(context, conditioners)
            x = x.detach().requires_grad_(needs_x)
            results = call.run_again(x, context, conditioners)
        if keeps_input:
            call.through.compare(results[0])
        call.through.state = x.detach()
        pairs = [
            (result, grad)
            for result, grad in zip(results, (grad_y, grad_total))
            if grad is not None and result.requires_grad
        ]
        inputs = (x, context, *ctx.parameters)
        found = _gradients(pairs, inputs, (needs_x, needs_context, *needs))
        return None, None, grad_total, *found


def _gradients(
    pairs: list[tuple[Tensor, Tensor]], inputs: tuple[Any, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of the inputs that need one, given those of the results; None for others."""
    wanted = [tensor for tensor, needs in zip(inputs, needed) if needs]
    if not (pairs and wanted):
        return [None] * len(inputs)
    results, given = zip(*pairs)
    with without_tensor_hooks(wanted):
        grads = iter(torch.autograd.grad(results, wanted, given, allow_unused=True))
    return [next(grads) if needs else None for needs in needed]


class _Anchor(torch.autograd.Function):
    """The identity; it saves its input, from which the layers before it are reconstructed."""

    @staticmethod
    def forward(ctx: Any, through: Pass, total: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.through = through
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        # Copies, so that later code may change the results in place.
        return x.clone(), total.clone()

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_total: Tensor | None) -> Any:
        (ctx.through.state,) = ctx.saved_tensors
        return None, grad_total, grad_x


def apply_without_graph(
    layer: nn.Module,
    x: Tensor,
    total: Tensor,
    context: Tensor | None,
    through: Pass,
    *,
    keeps_input: bool,
) -> tuple[Tensor, Tensor]:
    """The result of a layer, and `total` plus its log_det, as one node of the graph."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    call = _Call(layer, through, x)
    results: Any = _Step.apply(call, keeps_input, total, x, context, *parameters)
    return results


def anchor(x: Tensor, total: Tensor, through: Pass) -> tuple[Tensor, Tensor]:
    """Return `x` and `total`, and save `x` as the last state of layers that keep none."""
    results: Any = _Anchor.apply(through, total, x)
    return results[0], results[1]


def _state(layer: nn.Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]
