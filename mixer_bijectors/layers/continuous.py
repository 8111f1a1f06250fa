"""Continuous-time flows."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_builder, check_output, is_concrete
from ..bijection import Bijection
from ..flow import no_autocast
from ..nets import ResidualMLP

__all__ = ["ContinuousFlow"]


class ContinuousFlow(Bijection):
    r"""Flow along a learned velocity field, FFJORD.

    .. math:: \frac{dx}{dt} = v(x, t, \mathrm{context}), \qquad x(0) = z, \qquad
        \log\left|\det \frac{\partial x(1)}{\partial z}\right|
        = \int_0^1 \mathrm{tr} \frac{\partial v}{\partial x} \, dt

    In training mode the trace is Hutchinson's unbiased estimate with one random sign vector for
    each sample, drawn anew for every call; in evaluation mode it is exact, at the cost of
    `features` derivatives. Dormand and Prince's solver of torchdiffeq adapts its steps to the
    worst value in the batch. Hence it synchronises with the host in every step, does not
    compile to one graph, cannot be traced, exported or run under torch.func, and gives results
    that depend on the rest of the batch within its error. Gradients are those of the steps of
    the solver.

    `tol` bounds the error of a step, not that of a solution, which later steps stretch. In
    float32, on round trips of 200 standard normal samples of 6 features, the worst of them errs
    by 1e-6 where the parameters of the net have a standard deviation of 0.1; by 3e-5 at 0.2,
    where the flow moves samples by up to 10 (2e-4 with a tolerance of 1e-5, 4e-2 with 1e-3);
    and at 0.3 by 3e-4 if they move by up to 12, by 1e-2 and more if by hundreds.

    Args:
        features: number of features.
        hidden_features: width of the net.
        num_blocks: residual blocks of the default net.
        context_features: size of the context; 0 for an unconditional layer, which ignores any.
        net: builds the velocity, called as `net(features + 1, features, hidden_features=...,
            context_features=...)` where the last input is the time; by default
            `nets.ResidualMLP` with SiLU. It should be smooth, and start at zero for the layer
            to start as the identity.
        tol: tolerance of the solver for the error of a step, relative and absolute, that of the
            worst value in the batch.

    Shapes: (batch, features) in and out, context (batch, context_features), log_det (batch,).

    Raises:
        ImportError: torchdiffeq is not installed; it comes with the extra `ode`.
        TypeError: the input is not floating point, or of higher precision than the net.
        ValueError: an input not of shape (batch, features); a context that is missing or not
            of shape (batch, context_features); a tolerance that is not positive and finite.
        RuntimeError: the velocity is too steep for the tolerance; tracing, exporting or
            torch.func.

    References:
        Grathwohl et al., FFJORD, 2018 (https://arxiv.org/abs/1810.01367)

    Example:
        >>> layer = ContinuousFlow(6, hidden_features=32)
        >>> z, log_det = layer.inverse(torch.randn(5, 6))
        >>> z.shape, log_det.shape
        (torch.Size([5, 6]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        *,
        hidden_features: int = 64,
        num_blocks: int = 1,
        context_features: int = 0,
        net: Callable[..., nn.Module] | None = None,
        tol: float = 1e-6,
    ) -> None:
        super().__init__((features,), context_features=context_features)
        try:
            import torchdiffeq  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "ContinuousFlow needs torchdiffeq: pip install 'mixer_bijectors[ode]'"
            ) from error
        check_builder(type(self).__name__, "net", net)
        if not (isinstance(tol, float | int) and 0 < tol < math.inf):
            raise ValueError(
                f"{type(self).__name__}: tol must be positive and finite, got {tol!r}"
            )
        self.features = features
        self.tol = tol
        net = net or partial(ResidualMLP, num_blocks=num_blocks, activation=F.silu)
        self.net = net(
            features + 1,
            features,
            hidden_features=hidden_features,
            context_features=context_features,
        )

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        from torchdiffeq import odeint

        inputs = [t for t in (x, context, *self.net.parameters()) if t is not None]
        # torch.compile breaks its graph here.
        if not (torch.compiler.is_dynamo_compiling() or all(map(is_concrete, inputs))):
            raise RuntimeError(
                f"{type(self).__name__}: cannot be traced or exported, nor run under "
                "torch.func or on the meta device, as its solver chooses steps by the values "
                "of the batch; run the layer itself, and take gradients by torch.autograd"
            )
        if not x.shape[0]:
            return x, x.new_zeros(0)
        dtype = next(self.net.parameters(), x).dtype
        compute = torch.promote_types(dtype, torch.float32)
        # No step is small enough to be more exact than the net is.
        tol = max(self.tol, torch.finfo(dtype).eps)
        # With a sample that is not finite the solver would find no step size for the others.
        finite = x.isfinite().all(1)
        if context is not None:
            finite = finite & context.isfinite().all(1)
            context = context.where(finite.unsqueeze(1), 0.0)
        start = x.to(compute).where(finite.unsqueeze(1), 0.0)
        noise = torch.randint_like(start, 2) * 2 - 1 if self.training else None

        def dynamics(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            def velocity(y: Tensor) -> Tensor:
                clocked = torch.cat((y, time.to(y).expand(y.shape[0], 1)), dim=1).to(dtype)
                v = self.net(clocked) if context is None else self.net(clocked, context)
                check_output(type(self).__name__, v, *y.shape)
                return v.to(compute)

            return _velocity_and_trace(velocity, state[0], noise)

        with no_autocast(x):
            try:
                path, log_det = odeint(
                    dynamics,
                    (start, start.new_zeros(start.shape[0])),
                    start.new_tensor((1.0, 0.0) if inverse else (0.0, 1.0)),
                    rtol=tol,
                    atol=tol,
                    options={"norm": _largest},
                )
            except AssertionError as error:
                raise RuntimeError(
                    f"{type(self).__name__}: the solver found no step small enough for "
                    f"tol={tol:g} ({error}); the velocity is too steep or the input too large"
                ) from error
        y = path[-1].where(finite.unsqueeze(1), torch.nan)
        return y, log_det[-1].where(finite, torch.nan)


def _largest(state: tuple[Tensor, ...]) -> Tensor:
    """The largest absolute value; a mean over the batch would hide errors of a few samples."""
    return torch.stack([part.abs().amax() for part in state]).amax()


def _velocity_and_trace(
    velocity: Callable[[Tensor], Tensor], y: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The velocity at `y` and the trace of its Jacobian, estimated if there is noise."""
    if noise is not None:
        v, product = torch.func.jvp(velocity, (y,), (noise,))[:2]
        return v, (noise * product).sum(1)

    def column(unit: Tensor) -> Tensor:
        return torch.func.jvp(velocity, (y,), (unit.expand_as(y),))[1] @ unit

    units = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    # In chunks, so that memory does not grow with the square of the number of features.
    diagonal = torch.func.vmap(column, chunk_size=16)(units)
    return velocity(y), diagonal.sum(0)
