"""Flows as transforms of torch.distributions, which pyro and zuko use as well."""

from torch import Tensor

from ..declarations import check_flow, context_features
from ..flow import Flow
from .torch_transform import FlowTransform

__all__ = ["to_torch_transform"]


def to_torch_transform(
    flow: Flow,
    event_dim: int = 1,
    *,
    latent_event_dim: int | None = None,
    context: Tensor | None = None,
    cache_size: int = 0,
) -> FlowTransform:
    """A flow as a `torch.distributions.Transform` from latent to data.

    So `TransformedDistribution(base, to_torch_transform(flow))` samples and has densities, and
    so have pyro's and zuko's distributions; zuko's want the `.inv` of it. It is a
    `torch.nn.Module` that holds the flow, and two transforms of one flow are equal.

    Args:
        flow: the flow, whose parameters are shared.
        event_dim: number of dimensions of one event of data: 1 for vectors, 2 for matrices, 3
            for images. All dimensions before are batch, and any number of them.
        latent_event_dim: that of the latents, where it is another: 2 for `Patchify`.
        context: for a conditional flow, of shape (..., context_features). All dimensions but
            the last are a batch shape, which broadcasts with that of values and distributions.
        cache_size: 1 to remember the last pass, as transforms of torch do, so that the density
            of a sample takes no inverse. It counts for the same tensor, with the same numbers
            in it and in all parameters, buffers and the context, and with gradients enabled as
            they were; that is compared on each use, which waits for a GPU. With 0 nothing is
            compared: the log-determinant of a pass is kept for one call of
            `log_abs_det_jacobian` with its very two tensors, so that a density is one pass.
            Results with a graph are returned once, for one backward pass.
            Nothing is kept in torch.compile, nor with 1 in torch.func.

    Raises:
        TypeError: what is not a flow; of a model, take `mb.Chain(model.flows)`. A context that
            is not a floating point tensor.
        ValueError: events of no dimension, or of another shape than the flow declares; a
            context that no layer reads, of another size, or that does not broadcast.

    Example:
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> base = Independent(Normal(torch.zeros(6), torch.ones(6)), 1)
        >>> model = TransformedDistribution(base, to_torch_transform(mb.Coupling(6)))
        >>> model.log_prob(model.sample((5, 2))).shape
        torch.Size([5, 2])
    """
    check_flow("to_torch_transform", flow)
    dims = (event_dim if latent_event_dim is None else latent_event_dim, event_dim)
    if min(dims) < 1:
        raise ValueError(f"to_torch_transform: events must have dimensions, got {min(dims)}")
    if context is not None:
        _check_context(flow, context)
    return FlowTransform(flow, dims, context, cache_size)


def _check_context(flow: Flow, context: object) -> None:
    if not (isinstance(context, Tensor) and context.is_floating_point() and context.dim()):
        what = type(context).__name__
        if isinstance(context, Tensor):
            what = f"{context.dtype} of shape {tuple(context.shape)}"
        raise TypeError(
            "to_torch_transform: context must be a floating point tensor of shape "
            f"(..., context_features), got {what}"
        )
    if context_features(flow) == 0:
        raise ValueError(
            f"to_torch_transform: got a context, but no layer of {type(flow).__name__} reads "
            "one; build the layers with context_features, or leave context out"
        )
    features = context_features(flow)
    if features and features != context.shape[-1]:
        raise ValueError(
            f"to_torch_transform: expected a context of shape (..., {features}), got "
            f"{tuple(context.shape)}"
        )
