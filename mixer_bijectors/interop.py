"""Bridges to nflows, and to torch.distributions and what builds on it."""

from math import prod
from typing import Any

import torch
from nflows.transforms import Transform as NflowsTransform
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform as TorchTransform

from .flow import Flow, apply_flow

__all__ = ["from_nflows", "to_nflows", "to_torch_transform"]


def to_nflows(flow: Flow) -> NflowsTransform:
    """A flow, ours or of normflows, as an `nflows.transforms.Transform`.

    nflows runs the other way: its `forward` maps data to noise. Parameters are shared, and
    context is handed on to a flow that takes one. `from_nflows` gives the flow back.

    Args:
        flow: maps (batch, ...) to (batch, ...) either way.

    Raises:
        TypeError: what is not a flow; of a model, take `mb.Chain(model.flows)`.

    Example:
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from nflows.transforms import CompositeTransform, ReversePermutation
        >>> layers = [to_nflows(mb.Coupling(6)), ReversePermutation(6)]
        >>> Flow(CompositeTransform(layers), StandardNormal([6])).sample(10).shape
        torch.Size([10, 6])
    """
    if isinstance(flow, _TransformAsFlow):
        return flow.transform
    _check_flow("to_nflows", flow)
    return _FlowAsTransform(flow)


def from_nflows(transform: NflowsTransform) -> Flow:
    """An `nflows.transforms.Transform` as a flow of normflows.

    Parameters are shared. `InverseNotAvailable`, where the transform cannot sample, and
    `InputOutsideDomain` come as nflows raises them. `to_nflows` gives the transform back.

    Args:
        transform: maps data to noise.

    Raises:
        TypeError: what is not a transform of nflows.

    Example:
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> layer = from_nflows(MaskedAffineAutoregressiveTransform(6, hidden_features=16))
        >>> base = nf.distributions.DiagGaussian(6)
        >>> model = nf.NormalizingFlow(base, [layer, mb.LULinear(6)])
        >>> model.log_prob(torch.randn(10, 6)).shape
        torch.Size([10])
    """
    if isinstance(transform, _FlowAsTransform):
        return transform.flow
    if not isinstance(transform, NflowsTransform):
        raise TypeError(
            f"from_nflows: expected a transform of nflows, got {type(transform).__name__}"
        )
    return _TransformAsFlow(transform)


def to_torch_transform(
    flow: Flow,
    event_dim: int = 1,
    *,
    latent_event_dim: int | None = None,
    context: Tensor | None = None,
    cache_size: int = 0,
) -> TorchTransform:
    """A flow as a `torch.distributions.Transform` from latent to data.

    So `TransformedDistribution(base, to_torch_transform(flow))` samples and has densities, and
    so have pyro's and zuko's distributions; zuko's want the `.inv` of it. The last value that
    went through is remembered, so that a sample's density costs nothing more.

    Args:
        flow: the flow; its parameters stay in it, for an optimiser to find.
        event_dim: number of dimensions of one event of data: 1 for vectors, 2 for matrices, 3
            for images. All dimensions before are batch, and any number of them.
        latent_event_dim: that of the latents, where it is another: 2 for `Patchify`.
        context: for a conditional flow, of shape (..., context_features), which broadcasts
            over the batch.
        cache_size: 1 to remember the last value that went through, as transforms of torch do,
            so that the density of a sample takes no inverse. It is forgotten when a parameter
            changes, and when gradients are wanted of what was made without.

    Raises:
        TypeError: what is not a flow; of a model, take `mb.Chain(model.flows)`.
        ValueError: events of no dimension; a context that does not broadcast.

    Example:
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> base = Independent(Normal(torch.zeros(6), torch.ones(6)), 1)
        >>> model = TransformedDistribution(base, to_torch_transform(mb.Coupling(6)))
        >>> model.log_prob(model.sample((5, 2))).shape
        torch.Size([5, 2])
    """
    _check_flow("to_torch_transform", flow)
    dims = (event_dim if latent_event_dim is None else latent_event_dim, event_dim)
    if min(dims) < 1:
        raise ValueError(f"to_torch_transform: events must have dimensions, got {min(dims)}")
    return _FlowAsTorchTransform(flow, dims, context, cache_size)


def _check_flow(function: str, flow: object) -> None:
    # A compiled module has the methods of the one that it wraps.
    if not isinstance(getattr(flow, "_orig_mod", flow), Flow):
        raise TypeError(
            f"{function}: expected a flow of normflows, got {type(flow).__name__}; of a model, "
            "take mixer_bijectors.Chain(model.flows)"
        )


class _FlowAsTransform(NflowsTransform):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.flow, inputs, context, inverse=True)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.flow, inputs, context)


class _TransformAsFlow(Flow):
    def __init__(self, transform: NflowsTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.transform, z, context, inverse=True)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.transform, x, context)


class _FlowAsTorchTransform(TorchTransform):
    bijective = True

    def __init__(
        self,
        flow: Flow,
        event_dims: tuple[int, int],
        context: Tensor | None,
        cache_size: int,
    ) -> None:
        super().__init__(cache_size)
        self.flow = flow
        self.event_dims = event_dims
        self.context = context
        self.domain, self.codomain = (
            constraints.independent(constraints.real, dim) for dim in event_dims
        )
        self._last: tuple[Any, ...] = (None, None, None)
        self._state: tuple[Any, ...] = ()

    def with_cache(self, cache_size: int = 1) -> TorchTransform:
        if cache_size == self._cache_size:
            return self
        return type(self)(self.flow, self.event_dims, self.context, cache_size)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._shape(shape, inverse=False)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._shape(shape, inverse=True)

    def __getstate__(self) -> dict[str, Any]:
        self._forget()
        return super().__getstate__()

    def __call__(self, x: Tensor) -> Tensor:
        self._forget_what_is_stale()
        return super().__call__(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        self._forget_what_is_stale()
        return super()._inv_call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        self._forget_what_is_stale()
        last_x, last_y, log_det = self._last
        if not self._cache_size:
            # Good for the one use that a density makes of it, and holds no memory after.
            self._forget()
        if x is last_x and y is last_y:
            return log_det
        return -self._run(y, inverse=True)[1]

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self._run(x, inverse=False)
        self._remember(x, y, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._run(y, inverse=True)
        self._remember(x, y, -log_det)
        return x

    def _remember(self, *last: Tensor) -> None:
        self._last = last
        self._state = self._current_state()

    def _forget(self) -> None:
        self._cached_x_y = None, None
        self._last = None, None, None

    def _forget_what_is_stale(self) -> None:
        if self._state != self._current_state():
            self._forget()

    def _current_state(self) -> tuple[Any, ...]:
        """What the last values depend on, and whether they can be differentiated."""
        tensors = [*self.flow.parameters(), *self.flow.buffers(), *self._last]
        return (
            torch.is_grad_enabled(),
            self.flow.training,
            *((t.data_ptr(), t._version) for t in tensors if t is not None),
        )

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        event_dim = self.event_dims[inverse]
        batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
        context = self.context
        if context is not None:
            features = context.shape[-1]
            if torch.broadcast_shapes(context.shape[:-1], batch) != batch:
                raise ValueError(
                    f"to_torch_transform: a context of shape {tuple(context.shape)} does not "
                    f"broadcast over a batch of shape {tuple(batch)}"
                )
            context = context.expand(*batch, features).reshape(prod(batch), features)
        y, log_det = apply_flow(
            self.flow, x.reshape(prod(batch), *event), context, inverse=inverse
        )
        return y.reshape(*batch, *y.shape[1:]), log_det.reshape(batch)

    def _shape(self, shape: torch.Size, inverse: bool) -> torch.Size:
        if self.event_dims[0] == self.event_dims[1]:
            return shape
        with torch.no_grad():
            return self._run(torch.zeros(shape), inverse)[0].shape
