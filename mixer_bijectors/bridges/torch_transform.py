"""A flow as a transform of torch.distributions, and what it remembers of its last pass."""

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from .._checks import is_concrete
from .._dependencies import InverseTransform
from ..flow import Flow, apply_flow
from .event_shapes import map_shape

__all__ = ["FlowTransform"]


class FlowTransform(Transform, nn.Module):
    """A flow as a `torch.distributions.Transform` from latent to data.

    It is a module that holds the flow, so that pyro finds the parameters, as it finds those of
    its own `TransformModule`, and `.to(device)` moves the flow and the context.
    """

    bijective = True
    flow: Flow
    context: Tensor | None

    def __init__(
        self, flow: Flow, event_dims: tuple[int, int], context: Tensor | None, cache_size: int
    ) -> None:
        super().__init__(cache_size)
        self.flow = flow
        self.event_dims = event_dims
        self.register_buffer("context", context, persistent=False)
        self.domain, self.codomain = (
            constraints.independent(constraints.real, dim) for dim in event_dims
        )
        self._last: _Pass | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FlowTransform)
            and self.flow is other.flow
            and self.event_dims == other.event_dims
            and (
                self.context is other.context or _all_same(self._contexts(), other._contexts())
            )
        )

    def __hash__(self) -> int:
        return hash((id(self.flow), self.event_dims))

    def __getstate__(self) -> dict[str, Any]:
        return {**nn.Module.__getstate__(self), "_inv": None, "_last": None}

    @property
    def inv(self) -> Transform:
        inverse: Transform | None = self._inv
        if inverse is None:
            inverse = _InverseFlowTransform(self)
            # Not as a child of the module, since this is a child of the inverse.
            self.__dict__["_inv"] = inverse
        return inverse

    @property
    def sign(self) -> int:
        raise NotImplementedError(
            "to_torch_transform: a flow does not tell whether it increases, so that its "
            "distribution has no cdf and no icdf"
        )

    def with_cache(self, cache_size: int = 1) -> Transform:
        if cache_size == self._cache_size:
            return self
        return type(self)(self.flow, self.event_dims, self.context, cache_size)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._shape(shape, inverse=False)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._shape(shape, inverse=True)

    def __call__(self, x: Tensor) -> Tensor:
        last = self._last
        if self._cache_size and last and x is last.x and self._is_current(last, inverse=False):
            return last.y
        return self._call(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        last = self._last
        if self._cache_size and last and y is last.y and self._is_current(last, inverse=True):
            return last.x
        return self._inverse(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last = self._last
        if last and x is last.x and y is last.y and last.log_det is not None:
            log_det = last.log_det
            if not self._cache_size:
                self._last = None
            elif log_det.requires_grad:  # The graph of a result serves one backward pass.
                self._last = last._replace(log_det=None)
            if self._is_current(last):
                return log_det
        return -self._run(y, inverse=True)[1]

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self._run(x, inverse=False)
        self._remember(x, y, log_det, inverse=False)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._run(y, inverse=True)
        self._remember(x, y, -log_det, inverse=True)
        return x

    def _remember(self, x: Tensor, y: Tensor, log_det: Tensor, inverse: bool) -> None:
        self._last = None
        if torch.compiler.is_compiling():
            return
        values = None
        if self._cache_size:
            tensors = self._tensors(x, y)
            # A value of torch.func or of the meta device cannot be compared later on.
            if not all(map(is_concrete, tensors)):
                return
            values = [tensor.detach().clone() for tensor in tensors]
        self._last = _Pass(x, y, log_det, inverse, self._modes(), values)

    def _is_current(self, last: "_Pass", inverse: bool | None = None) -> bool:
        """Whether the last pass, run again, would give the same values and gradients.

        With `inverse`, whether its result in that direction can be returned once more.
        """
        if last.modes != self._modes():
            return False
        result = last.x if inverse else last.y
        if inverse == last.inverse and result.requires_grad:
            return False  # Its graph may have served its one backward pass.
        if last.values is None:
            return True
        tensors = self._tensors(last.x, last.y)
        return all(map(is_concrete, tensors)) and _all_same(tensors, last.values)

    def _tensors(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """All that a pass depends on and that may change in place."""
        return [x, y, *self._contexts(), *self.flow.parameters(), *self.flow.buffers()]

    def _contexts(self) -> list[Tensor]:
        return [] if self.context is None else [self.context]

    def _modes(self) -> tuple[bool, ...]:
        modules = self.flow.modules()
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
            *(module.training for module in modules),
        )

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        batch, event = self._split(x.shape, inverse)
        context = self.context
        if context is not None:
            batch = self._with_context(batch)
            x = x.expand(*batch, *event)
            features = context.shape[-1]
            context = context.expand(*batch, features).reshape(prod(batch), features)
        y, log_det = apply_flow(
            self.flow, x.reshape(prod(batch), *event), context, inverse=inverse
        )
        if y.dim() - 1 != self.event_dims[not inverse]:
            raise ValueError(
                f"to_torch_transform: {type(self.flow).__name__} returned events of shape "
                f"{tuple(y.shape[1:])}, expected {self.event_dims[not inverse]} dimensions; "
                "give event_dim, and latent_event_dim where the latents have another"
            )
        return y.reshape(*batch, *y.shape[1:]), log_det.reshape(batch)

    def _split(self, shape: torch.Size, inverse: bool) -> tuple[torch.Size, torch.Size]:
        """The shape of the batch and that of an event."""
        event_dim = self.event_dims[inverse]
        if len(shape) < event_dim:
            raise ValueError(
                f"to_torch_transform: expected events of {event_dim} dimensions, got shape "
                f"{tuple(shape)}"
            )
        cut = len(shape) - event_dim
        return shape[:cut], shape[cut:]

    def _shape(self, shape: torch.Size, inverse: bool) -> torch.Size:
        latent_dim, dim = self.event_dims
        batch, event = self._split(shape, inverse)
        context = self.context
        return self._with_context(batch) + map_shape(
            "to_torch_transform",
            self.flow,
            event,
            None if context is None else context.detach().reshape(-1, context.shape[-1])[:1],
            same_dim=latent_dim == dim,
            inverse=inverse,
        )

    def _with_context(self, batch: torch.Size) -> torch.Size:
        """The shape of a batch after it has been broadcast with the context."""
        if self.context is None:
            return batch
        try:
            return torch.broadcast_shapes(self.context.shape[:-1], batch)
        except RuntimeError:
            raise ValueError(
                f"to_torch_transform: a context of shape {tuple(self.context.shape)} does not "
                f"broadcast with a batch of shape {tuple(batch)}; all its dimensions but the "
                "last belong to the batch"
            ) from None


class _InverseFlowTransform(InverseTransform, nn.Module):
    """The inverse, from data to latent: a module that holds the transform."""

    def __hash__(self) -> int:
        return hash((type(self), self._inv))

    def __getstate__(self) -> dict[str, Any]:
        return nn.Module.__getstate__(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self.inv.__dict__["_inv"] = self


class _Pass(NamedTuple):
    """The last pass of a flow, either way, and what it was made with."""

    x: Tensor
    y: Tensor
    log_det: Tensor | None
    inverse: bool
    modes: tuple[bool, ...]
    values: list[Tensor] | None


def _all_same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors hold the same numbers as others, with one host synchronisation."""
    kinds, other_kinds = (
        [(x.dtype, x.device, x.shape) for x in given] for given in (tensors, others)
    )
    if kinds != other_kinds or not tensors:
        return kinds == other_kinds
    same = [(a == b).all().to(tensors[0].device) for a, b in zip(tensors, others)]
    return bool(torch.stack(same).all())
