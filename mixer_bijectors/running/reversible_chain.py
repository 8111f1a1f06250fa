"""A composition of flows whose backward pass reconstructs states in place of keeping them."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_size, is_concrete, is_traced
from .._dependencies import (
    all_modules,
    all_parameters,
    child_modules,
    has_hooks,
    run_uncompiled,
)
from ..chain import Chain
from ..flow import Flow, apply_flow
from .recomputation import Pass, anchor, apply_without_graph
from .round_trip import Treatment, Way, treatment_of

__all__ = ["Reversal", "ReversibleChain", "flatten"]


class Reversal:
    """Runs flows in a row without keeping their states, which backward reconstructs.

    Args:
        name: whose flows they are, for messages.
        keep_every: every how many layers the input of one is kept.

    Attributes:
        drift: the largest reconstruction error of the last backward pass.
    """

    def __init__(self, name: str, keep_every: int | None) -> None:
        if keep_every is not None:
            check_size(name, "keep_every", keep_every, least=1)
        self.name = name
        self.keep_every = keep_every
        self.treatments: dict[tuple[Any, ...], Treatment] = {}
        self.last_pass: Pass | None = None
        self._told = False

    @property
    def drift(self) -> Tensor | None:
        return None if self.last_pass is None else self.last_pass.drift

    @property
    def kept(self) -> dict[int, str]:
        """Numbers of layers whose input is not reconstructed, with reasons."""
        return {
            key[0]: f"{key[1]}: {t.reason}" for key, t in self.treatments.items() if t.reason
        }

    def __getstate__(self) -> dict[str, Any]:
        # What a pass holds belongs to its graph.
        return self.__dict__ | {"last_pass": None}

    def run(
        self,
        flows: Sequence[Flow],
        x: Tensor,
        context: Tensor | None = None,
        *,
        inverse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run the flows one after the other, `flows[0]` first, or last when `inverse`."""
        numbered = list(enumerate(flows))
        if inverse:
            numbered.reverse()
        if torch.is_grad_enabled():
            return self._run_reversibly(numbered, x, context, inverse)
        return _run(numbered, x, context, inverse)

    @run_uncompiled
    def _run_reversibly(
        self,
        numbered: list[tuple[int, Flow]],
        x: Tensor,
        context: Tensor | None,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        parameters = [p for _, flow in numbered for p in all_parameters(flow)]
        if not _is_ordinary(x, context, parameters, numbered):
            return _run(numbered, x, context, inverse)
        self.last_pass = through = Pass(inverse)
        total = x.new_zeros(x.shape[:1])
        run_since = 0  # since the last state that is kept
        for index, flow in numbered:
            way = self._treatment(index, flow, x, context, inverse).way
            if way is Way.PLAIN:
                if run_since:
                    x, total = anchor(x, total, through)
                x, log_det = apply_flow(flow, x, context, inverse=inverse)
                total, run_since = total + log_det, 0
                continue
            due = run_since % (self.keep_every or len(numbered) + 1) == 0
            keeps_input = way is Way.KEPT or due or not x.requires_grad
            x, total = apply_without_graph(
                flow, x, total, context, through, keeps_input=keeps_input
            )
            run_since += 1
        if run_since:
            x, total = anchor(x, total, through)
        self._warn_of_kept(len(numbered))
        return x, total

    def _treatment(
        self, index: int, flow: nn.Module, x: Tensor, context: Tensor | None, inverse: bool
    ) -> Treatment:
        """The treatment of a layer, found on the first batch in each combination of modes."""
        device = "cpu" if x.device.type == "meta" else x.device.type
        modes = tuple(module.training for module in all_modules(flow))
        autocast = torch.is_autocast_enabled(device)
        key = (index, type(flow).__name__, inverse, x.dtype, autocast, modes)
        if key not in self.treatments:
            self.treatments[key] = treatment_of(flow, x.detach(), context, inverse=inverse)
        return self.treatments[key]

    def _warn_of_kept(self, number: int) -> None:
        """Warn once of layers whose inputs or activations are kept."""
        kept = self.kept
        if self._told or not kept:
            return
        self._told = True
        reasons = sorted(set(kept.values()))
        warnings.warn(
            f"{self.name}: memory grows with {len(kept)} of {number} layers, whose inputs are "
            f"not reconstructed: {'; '.join(reasons)}",
            stacklevel=2,
        )


class ReversibleChain(Chain):
    r"""Composition of flows, as `Chain`, with memory in training that is that of one of them.

    Values and gradients are those of `Chain`. No layer keeps its activations: backward
    reconstructs the input of each layer from its output by the other direction of the layer,
    and computes gradients from there. In a coupling, one call of the net serves both. A
    training step takes about a third longer.

    In the first batch with gradients, each layer runs there and back. If the round trip is off
    by more than :math:`\epsilon^{2/3}` of the largest value (2.4e-5 in float32, 3.7e-11 in
    float64), the input of the layer is kept in place of being reconstructed, and the layer runs
    once more all the same. So are inputs of layers whose other direction is sequential (it
    calls more than three times as many functions), solved by iteration or missing, that draw
    random numbers, or that run on half precision. A layer that changes its buffers
    in each pass, as batch normalisation and spectral normalisation do, is left to autograd. A
    warning lists these layers.

    Gradients reach parameters layer by layer, by autograd's engine, with all hooks. Layers run
    again as they ran, with the state of autocast and of the random numbers. Under
    `torch.compile` a pass with gradients is no part of a graph; under `torch.func`, on the meta
    device and for empty batches it runs as `Chain` does.

    Args:
        flows: the flows to compose, see `Chain`; chains among them are taken as their flows.
        keep_every: keep the input of every so manieth layer too, against drift; by default the
            first layer's alone.

    Attributes:
        last_drift: largest difference, in the last backward pass, between states that were
            reconstructed and what they were, taken where an input is kept; a tensor, since to
            read it synchronises. None before.
        kept: numbers of the layers whose inputs are not reconstructed, with reasons.

    Raises:
        TypeError, ValueError: as `Chain`.
        NotImplementedError: second derivatives.
        RuntimeError: from backward, if parameters or buffers were changed in place, or
            replaced, since the forward pass.

    Warns:
        UserWarning: layers whose inputs are kept, once.

    References:
        Gomez et al., The reversible residual network: backpropagation without storing
        activations, 2017 (https://arxiv.org/abs/1707.04585)

        Orozco et al., InvertibleNetworks.jl: a Julia package for scalable normalizing flows,
        2024 (https://doi.org/10.21105/joss.06554)

    Example:
        >>> flow = ReversibleChain([mb.Coupling(6, reverse=i % 2 == 1) for i in range(8)])
        >>> z, log_det = flow.inverse(torch.randn(10, 6))
        >>> (z.square().sum() - log_det.sum()).backward()
        >>> bool(flow.last_drift < 1e-5), flow.kept
        (True, {})
    """

    def __init__(self, flows: Iterable[Flow], *, keep_every: int | None = None) -> None:
        super().__init__(flows)
        self.keep_every = keep_every
        self._reversal = Reversal(type(self).__name__, keep_every)

    @property
    def last_drift(self) -> Tensor | None:
        return self._reversal.drift

    @property
    def kept(self) -> dict[int, str]:
        return self._reversal.kept

    def transform(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        inverse: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        if options:
            return super().transform(x, context, inverse=inverse, **options)
        return self._reversal.run(list(flatten(self.flows)), x, context, inverse=inverse)


def flatten(layers: nn.Module) -> Iterator[Any]:
    """The layers of a list, with those of compositions among them."""
    for layer in child_modules(layers).values():
        nested = None
        if layer is not None and not has_hooks(layer):
            nested = _NESTED.get((type(layer).__module__, type(layer).__name__))
        if nested:
            yield from flatten(getattr(layer, nested))
        else:
            yield layer


# Where compositions, and no classes derived from them, have their layers; by name, so that
# nothing has to be imported for it.
_NESTED = {
    (Chain.__module__, "Chain"): "flows",
    (__name__, "ReversibleChain"): "flows",
    ("normflows.flows.base", "Composite"): "_flows",
    ("nflows.transforms.base", "CompositeTransform"): "_transforms",
}


def _run(
    numbered: list[tuple[int, Flow]], x: Tensor, context: Tensor | None, inverse: bool
) -> tuple[Tensor, Tensor]:
    total = x.new_zeros(x.shape[:1])
    for _, flow in numbered:
        x, log_det = apply_flow(flow, x, context, inverse=inverse)
        total = total + log_det
    return x, total


def _is_ordinary(
    x: Tensor,
    context: Tensor | None,
    parameters: list[nn.Parameter],
    numbered: list[tuple[int, Flow]],
) -> bool:
    """Whether layers can be run again from their own parameters, on values."""
    if (
        is_traced()
        or not is_concrete(x)
        or type(x) not in (Tensor, nn.Parameter)
        or x.numel() == 0
    ):
        return False
    if context is not None and not is_concrete(context):
        return False
    # In torch.func other tensors stand in for parameters, and in a replica of DataParallel
    # they are no parameters at all.
    replica = any(getattr(flow, "_is_replica", False) for _, flow in numbered)
    return not replica and all(type(p) is nn.Parameter and is_concrete(p) for p in parameters)
