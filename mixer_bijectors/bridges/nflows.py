"""Bridges to nflows, and to torch.distributions and what builds on it."""

from nflows.transforms import Transform as NflowsTransform
from torch import Tensor, nn

from .._checks import check_context
from ..flow import Flow, apply_flow, context_features
from .torch_transform import FlowTransform

__all__ = ["from_nflows", "to_nflows", "to_torch_transform"]


def to_nflows(flow: Flow) -> NflowsTransform:
    """A flow of this library or of normflows as an `nflows.transforms.Transform`.

    nflows runs the other way: its `forward` maps data to noise. Parameters are shared, and
    context is handed on to a flow that takes one. `from_nflows` gives the flow back. Without
    it, a flow among transforms of nflows would run backwards, and is refused.

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


def from_nflows(transform: NflowsTransform, *, context_features: int | None = None) -> Flow:
    """An `nflows.transforms.Transform` as a flow of normflows.

    Parameters are shared. `InverseNotAvailable`, where the transform cannot sample, and
    `InputOutsideDomain` come as nflows raises them. `to_nflows` gives the transform back.

    Args:
        transform: maps data to noise.
        context_features: size of the context that the transform reads, where it holds other
            nets than those of nflows, which know theirs.

    Raises:
        TypeError: what is not a transform of nflows.
        ValueError: from the flow, a context that is missing or of another shape.

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
    if context_features is None:
        context_features = _find_context_features(transform)
    return _TransformAsFlow(transform, context_features)


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
    _check_flow("to_torch_transform", flow)
    dims = (event_dim if latent_event_dim is None else latent_event_dim, event_dim)
    if min(dims) < 1:
        raise ValueError(f"to_torch_transform: events must have dimensions, got {min(dims)}")
    if context is not None:
        _check_context(flow, context)
    return FlowTransform(flow, dims, context, cache_size)


def _check_flow(function: str, flow: object) -> None:
    # A compiled module has the methods of the one that it wraps.
    if not isinstance(getattr(flow, "_orig_mod", flow), Flow):
        raise TypeError(
            f"{function}: expected a flow of normflows, got {type(flow).__name__}; of a model, "
            "take mixer_bijectors.Chain(model.flows)"
        )


def _find_context_features(transform: NflowsTransform) -> int | None:
    """Size of the context that nets of nflows, and flows in adapters, read; None for others."""
    sizes = {0}
    for module in transform.modules():
        layer = getattr(module, "context_layer", None)
        if isinstance(layer, nn.Linear):
            sizes.add(layer.in_features)
        elif getattr(module, "context_features", None):
            sizes.add(module.context_features)
        package = type(module).__module__.partition(".")[0]
        # A context of channels, for convolutions, is not one of features.
        own = package in ("torch", "nflows", "normflows", "mixer_bijectors")
        if not own or getattr(module, "context_channels", None):
            return None
    return max(sizes)


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


class _FlowAsTransform(NflowsTransform):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.flow, inputs, context, inverse=True)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.flow, inputs, context)


class _TransformAsFlow(Flow):
    def __init__(self, transform: NflowsTransform, context_features: int | None) -> None:
        super().__init__()
        self.transform = transform
        self.context_features = context_features

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.transform, z, self._checked(context, z), inverse=True)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.transform, x, self._checked(context, x))

    def _checked(self, context: Tensor | None, x: Tensor) -> Tensor | None:
        # nflows takes no context for one of zeros, and broadcasts a single one.
        if not self.context_features:
            return context
        name = type(self.transform).__name__
        return check_context(name, context, x.shape[0], self.context_features)
