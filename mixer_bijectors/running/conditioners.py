"""Reuses the result of a coupling's net, which both directions compute from the same values."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import imported_class, replaces_methods
from .._dependencies import has_hooks, is_compiled, without_tensor_hooks
from .known_layers import runs_methods_of

__all__ = ["Conditioners"]

# Couplings, as module, class and the names of their nets. Each direction calls each net once,
# with the half that is not transformed.
_COUPLINGS = (
    ("mixer_bijectors.layers.coupling", "Coupling", ("net",)),
    ("mixer_bijectors.layers.matrix_coupling", "MatrixCoupling", ("net",)),
    ("normflows.flows.affine.coupling", "AffineCoupling", ("param_map",)),
    ("normflows.flows.affine.coupling", "MaskedAffineFlow", ("s", "t")),
    ("normflows.flows.neural_spline.coupling", "Coupling", ("transform_net",)),
    ("nflows.transforms.coupling", "CouplingTransform", ("transform_net",)),
)


class Conditioners:
    """The nets of all couplings in some layers: one call is recorded, and the next reuses it.

    Backward reconstructs the input of a coupling, and then runs the coupling again. Both call
    the net with the half that the coupling leaves unchanged. So the net runs once, with a
    graph, and the second call returns the recorded result, connected to the graph of that call.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        nets = (net for layer in layers for net in _nets(layer))
        self.records: dict[nn.Module, list[_Record]] = {net: [] for net in nets}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A context manager in which calls of the nets are recorded."""
        with self._replaced(_record):
            yield

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """A context manager in which calls of the nets return recorded results, in order."""
        with self._replaced(_replay):
            yield

    @contextmanager
    def _replaced(self, call: Callable[..., Tensor]) -> Iterator[None]:
        try:
            for net, records in self.records.items():
                net.__dict__["forward"] = partial(call, net, records)
            yield
        finally:
            for net in self.records:
                net.__dict__.pop("forward", None)


class _Record:
    """A call of a net: detached arguments, parameters, and the result with its graph."""

    def __init__(self, net: nn.Module, arguments: Iterable[Any]) -> None:
        self.arguments = [
            a.detach().requires_grad_() if _is_differentiable(a) else a for a in arguments
        ]
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        with torch.enable_grad():
            self.result: Tensor = type(net).forward(net, *self.arguments)


class _Reuse(torch.autograd.Function):
    """Returns a recorded result, and passes its gradients to arguments of equal values."""

    @staticmethod
    def forward(ctx: Any, record: _Record, *inputs: Any) -> Tensor:
        ctx.record = record
        # A copy, since some layers of normflows and nflows write into it.
        return record.result.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs = (*ctx.record.arguments, *ctx.record.parameters)
        needed = ctx.needs_input_grad[1:]
        wanted = [t for t, needs in zip(inputs, needed) if needs]
        with without_tensor_hooks(wanted):
            grads = iter(
                torch.autograd.grad(ctx.record.result, wanted, grad, allow_unused=True)
                if wanted
                else ()
            )
        return None, *(next(grads) if needs else None for needs in needed)


def _record(net: nn.Module, records: list[_Record], *arguments: Any) -> Tensor:
    record = _Record(net, arguments)
    records.append(record)
    return record.result.detach().clone()


def _replay(net: nn.Module, records: list[_Record], *arguments: Any) -> Tensor:
    record = records.pop(0)
    result: Tensor = _Reuse.apply(record, *arguments, *record.parameters)
    return result


def _nets(layer: nn.Module) -> Iterator[nn.Module]:
    for module in layer.modules():
        for name in _net_names(module):
            net = getattr(module, name)
            # Nets with hooks are left out: these would run outside of the recorded graph.
            plain = isinstance(net, nn.Module) and not has_hooks(net)
            if plain and not replaces_methods(net) and not is_compiled(net):
                yield net


def _net_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the nets of a known coupling; none if a subclass replaces its methods."""
    for source, name, nets in _COUPLINGS:
        coupling = imported_class(source, name)
        if isinstance(module, coupling) and runs_methods_of(module, coupling):
            return nets
    return ()


def _is_differentiable(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()
