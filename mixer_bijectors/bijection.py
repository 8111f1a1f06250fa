"""The base class of all layers, which declares shapes and context and checks inputs."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

from normflows.flows import Flow
from torch import SymFloat, Tensor
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ._checks import (
    check_context,
    check_event,
    check_precision,
    check_size,
    event_axes,
    is_traced,
)
from ._repr import describe

__all__ = ["Bijection", "Shape", "complete_log_det", "copy_if_same", "split_result"]

# Hooks that compute a parameter from others before a module runs.
_RECOMPUTE_PARAMETERS = (BasePruningMethod, SpectralNorm, WeightNorm)
# Sizes of the axes of an event; None for an axis of any size.
Shape = tuple[int | None, ...]


class Bijection(Flow):
    r"""A `normflows.flows.Flow` that declares its shapes and the size of its context.

    A subclass passes its declarations to this constructor and writes one method, `transform`.
    `forward` (latent to data) and `inverse` (data to latent) check the input and the context
    against the declarations, run `transform`, and return its result, contiguous and in the
    dtype of the input, with a log-determinant of shape (batch,).

    A layer that reads a context declares its size: with `context_features=0` it never gets
    one, and a class-conditional model refuses to be built if no layer declares any. A class
    that sets `holds_flows` is made of other flows, and passes a context on to them.

    A layer that can be sampled in several ways, such as by different solvers, names keywords
    for this in `sampling_options`. `forward` takes these keywords and hands them to
    `transform`; models and layers that hold flows pass them on to each flow that declares them.

    Args:
        event_shape: shape of one event of data, without the batch; None for an axis of any
            size, or None in place of the shape if it is not known.
        latent_shape: shape of one latent, if it differs from `event_shape`.
        context_features: size of the context that `transform` reads; 0 for none, although
            models of normflows pass a context to all of their layers; None for a layer that
            passes on any context.

    Shapes: (batch, \*event_shape) and (batch, \*latent_shape), context
    (batch, context_features), log_det (batch,).

    Raises:
        TypeError: the input is not a tensor of floating point numbers, or of higher precision
            than the parameters; the context is not a tensor; `transform` returned no pair.
        ValueError: a size is not a whole number, or below 1 (on construction); the input is of
            another shape; the context is missing, of another batch
            size, or not of shape (batch, context_features); `transform` returned another batch
            size, or a log_det of another shape than () or (batch,).

    Example:
        >>> class Scale(mb.Bijection):
        ...     def __init__(self, features, context_features):
        ...         super().__init__((features,), context_features=context_features)
        ...         self.net = torch.nn.Linear(context_features, features)
        ...
        ...     def transform(self, x, context=None, *, inverse=False):
        ...         log_scale = -self.net(context) if inverse else self.net(context)
        ...         return x * log_scale.exp(), log_scale.sum(1)
        >>> layer = Scale(3, context_features=2)
        >>> mb.check_bijection(layer, torch.randn(4, 3), torch.randn(4, 2))
        >>> mb.Chain([layer, mb.Coupling(3, hidden_features=8, num_blocks=1), mb.LULinear(3)])
        Chain((3,), context_features=2, 204 parameters)
          (0): Scale((3,), context_features=2, 9 parameters)
            (net): Linear(in_features=2, out_features=3, bias=True, 9 parameters)
          (1): Coupling((3,), Affine(max_log_scale=3.0), 186 parameters)
            (net): ResidualMLP(2 to 2, width 8, 186 parameters)
          (2): LULinear((3,), 9 parameters)
    """

    # If True, `check` leaves it to the flows inside to compare the precision of the input with
    # that of their parameters, and to drop a context that they do not read.
    holds_flows: ClassVar[bool] = False

    def __init__(
        self,
        event_shape: Sequence[int | None] | None,
        *,
        latent_shape: Sequence[int | None] | None = None,
        context_features: int | None = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.event_shape = check_declared(name, event_shape)
        self.latent_shape = check_declared(name, latent_shape) or self.event_shape
        if context_features is not None:
            check_size(name, "context_features", context_features, least=0)
        self.context_features = context_features

    @property
    def sampling_options(self) -> tuple[str, ...]:
        """Names of the options of sampling; of a layer that holds flows, those of the flows."""
        held = list(self.modules())[1:] if self.holds_flows else []
        names = (name for flow in held for name in getattr(flow, "sampling_options", ()))
        return tuple(dict.fromkeys(names))

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Map latents to data, or data to latents if `inverse`, with the log_det of that map.

        Args:
            x: the input, of the declared shape.
            context: of shape (batch, context_features) in the dtype of the parameters; None
                for a layer that declares none.
            inverse: False from latent to data, True from data to latent.

        Returns:
            The result, and log_det of shape (batch,), or () if it is equal for all samples.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement transform")

    def forward(
        self, z: Tensor, context: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Map latents to data, with the log_det of that map; takes the `sampling_options`."""
        if unknown := [name for name in options if name not in self.sampling_options]:
            known = ", ".join(self.sampling_options) or "none"
            raise TypeError(
                f"{type(self).__name__}: sampling has no option {unknown[0]} here; its options "
                f"are {known}"
            )
        return self._run(z, context, inverse=False, **options)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latents, with the log_det of that map."""
        for hook in self._forward_pre_hooks.values():
            # Torch runs these hooks only when the module is called, which means `forward`.
            if isinstance(hook, _RECOMPUTE_PARAMETERS):
                hook(self, (x,))
        return self._run(x, context, inverse=True)

    def __repr__(self) -> str:
        """The layer and its parts, with sizes, options and numbers of parameters."""
        return describe(self)

    def check(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> Tensor | None:
        """Check the input and the context, and return the context for `transform`."""
        name = type(self).__name__
        check_event(name, x, self.event_shape if inverse else self.latent_shape)
        like = None if self.holds_flows else next(self.parameters(), None)
        if like is not None:
            check_precision(name, x, like)
        features = self.context_features
        if not features:
            if context is not None:
                check_context(name, context, x.shape[0], features)
            return context if features is None or self.holds_flows else None
        context = check_context(name, context, x.shape[0], features)
        return context if like is None else context.to(like.dtype)

    def _run(
        self, x: Tensor, context: Tensor | None, *, inverse: bool, **options: Any
    ) -> tuple[Tensor, Tensor]:
        context = self.check(x, context, inverse=inverse)
        name = type(self).__name__
        result = self.transform(x, context, inverse=inverse, **options)
        y, log_det = split_result(name, x, result)
        y = copy_if_same(y, x)
        # Contiguous, since users flatten results with view.
        return y.to(x.dtype).contiguous(), complete_log_det(name, x, log_det)


def check_declared(name: str, shape: Sequence[int | None] | None) -> Shape | None:
    """A declared shape as a tuple of ints; raises unless its sizes are None or whole from 1."""
    if shape is None:
        return None
    for axis, size in zip(event_axes(len(shape)), shape):
        if size is not None:
            check_size(name, axis, size, least=1)
    return tuple(None if size is None else int(size) for size in shape)


def split_result(name: str, x: Tensor, result: Any) -> tuple[Tensor, Any]:
    """The tensor and the log-determinant that a method of a flow returned.

    Raises:
        TypeError: it returned something else than such a pair.
        ValueError: the tensor is of another batch size than the input.
    """
    if not (isinstance(result, tuple | list) and len(result) == 2):
        what = type(result).__name__
        if isinstance(result, tuple | list):
            what = f"{len(result)} values"
        raise TypeError(f"{name} returned {what}; expected a pair, a tensor and its log_det")
    y, log_det = result
    if not isinstance(y, Tensor):
        raise TypeError(
            f"{name} returned a {type(y).__name__} and a {type(log_det).__name__}; expected a "
            "tensor and its log_det"
        )
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"{name} returned a result of shape {tuple(y.shape)} for a batch of {x.shape[0]}; "
            "flows keep the batch"
        )
    return y, log_det


def complete_log_det(name: str, x: Tensor, log_det: Tensor | float) -> Tensor:
    """A log-determinant of shape (batch,) in the dtype and on the device of the input.

    A number, or a tensor of shape () or (1,), as some layers of normflows return it, counts for
    every sample.

    Raises:
        TypeError: the log-determinant is neither a tensor nor a number.
        ValueError: it is of another shape.
    """
    batch = x.shape[0]
    if not isinstance(log_det, Tensor):
        if not isinstance(log_det, Real | SymFloat):
            raise TypeError(
                f"{name} returned a {type(log_det).__name__} as log_det; expected a tensor of "
                f"shape ({batch},), or a number that counts for every sample"
            )
        return x.new_full((batch,), log_det)
    if log_det.dim() == 1 and log_det.shape[0] == batch:
        if is_traced():
            # If the trace holds log_det as a constant, `expand` raises for a batch of another
            # size, where later sums might broadcast it without notice.
            return log_det.to(x).expand(batch)
        return log_det.to(x)
    if log_det.numel() != 1 or log_det.dim() > 1:
        raise ValueError(
            f"{name} returned a log_det of shape {tuple(log_det.shape)} for a batch of "
            f"{batch}; expected ({batch},)"
        )
    return log_det.to(x).repeat(batch)  # a copy, since it may be a buffer of the layer


def copy_if_same(y: Tensor, x: Tensor) -> Tensor:
    """`y`, or a copy if it is `x` itself, so that nobody changes an input through a result."""
    return x.clone() if y is x else y
