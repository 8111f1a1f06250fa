"""Autoregressive layers."""

import warnings
from typing import Any

import torch
from normflows.nets import MADE
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_flag, check_size, check_univariate
from ..bijection import Bijection
from ..nets import ResidualMLP
from ..univariate import Affine, Univariate

__all__ = ["Autoregressive"]


class Autoregressive(Bijection):
    r"""Transforms each feature with parameters that a masked net computes from those before it.

    .. math:: x_i = f(z_i; \mathrm{net}_i(x_1, \ldots, x_{i - 1}, \mathrm{context}))

    The density direction (`inverse`) is one pass of the net, a MADE; sampling (`forward`) takes
    one pass for each feature. In a MADE of several features no hidden unit feeds the first
    one's parameters, which would be the same for every context; a perceptron of the context
    adds to them.

    Args:
        features: number of features.
        univariate: the elementwise bijection :math:`f`.
        hidden_features: width of the nets, at least `features - 1`.
        num_blocks: residual blocks of the nets.
        context_features: size of the context; 0 for an unconditional layer, which ignores any.
            Checkpoints of conditional layers without the perceptron load, and start it at zero.
        reverse: read the features from last to first.

    Shapes: (batch, features) in and out, context (batch, context_features), log_det (batch,).

    Raises:
        TypeError: the input is not floating point, or of higher precision than the net;
            `univariate` is a class instead of an instance.
        ValueError: a net too narrow; an input not of shape (batch, features); a context that is
            missing or not of shape (batch, context_features).

    References:
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017
        (https://arxiv.org/abs/1705.07057)

        Germain et al., MADE, 2015 (https://arxiv.org/abs/1502.03509)

    Example:
        >>> layer = Autoregressive(6, mb.RationalQuadratic(), hidden_features=32)
        >>> z, log_det = layer.inverse(torch.randn(5, 6))
        >>> z.shape, log_det.shape
        (torch.Size([5, 6]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        univariate: Univariate = Affine(),
        *,
        hidden_features: int = 128,
        num_blocks: int = 2,
        context_features: int = 0,
        reverse: bool = False,
    ) -> None:
        super().__init__((features,), context_features=context_features)
        name = type(self).__name__
        check_univariate(name, univariate)
        check_flag(name, "reverse", reverse)
        check_size(name, "hidden_features", hidden_features, least=1)
        check_size(name, "num_blocks", num_blocks, least=0)
        if hidden_features < features - 1:
            raise ValueError(
                f"{name}: hidden_features must be at least features - 1 = "
                f"{features - 1}, or some features reach no hidden unit, got {hidden_features}"
            )
        self.features = features
        self.univariate = univariate
        self.reverse = reverse
        # Building a MADE reads the values of its masks, which the meta device does not have.
        with torch.device("cpu"):
            net = MADE(
                features,
                hidden_features,
                context_features=context_features or None,
                num_blocks=num_blocks,
                output_multiplier=univariate.num_params,
            )
        nn.init.zeros_(net.final_layer.weight)
        nn.init.zeros_(net.final_layer.bias)
        self.net = net.to(torch.empty(0))  # the default device, and masks of the default dtype
        for module in self.net.modules():
            if isinstance(getattr(module, "degrees", None), Tensor):
                # Averages of models would truncate whole numbers.
                module.degrees = module.degrees.to(torch.get_default_dtype())
        self.first: ResidualMLP | None = None
        if context_features and features > 1:
            self.first = ResidualMLP(
                context_features,
                univariate.num_params,
                hidden_features=hidden_features,
                num_blocks=num_blocks,
            )
            self.register_load_state_dict_pre_hook(_start_at_zero)

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        y = self._order(x)
        if inverse:
            z, log_derivative = self.univariate(y, self._params(y, context), inverse=True)
            return self._order(z), log_derivative.sum(1)
        x = torch.zeros_like(y)
        log_derivatives = []
        for i, chosen in enumerate(torch.eye(self.features, dtype=torch.bool, device=x.device)):
            # Features not yet sampled are zeros: masks hide finite values from the net, but
            # the product of zero and a value that is not finite is not zero.
            column, log_derivative = self.univariate(y[:, i], self._params(x, context)[:, i])
            x = torch.where(chosen, column.unsqueeze(1), x)
            log_derivatives.append(log_derivative)
        return self._order(x), torch.stack(log_derivatives, dim=1).sum(1)

    def jacobi_step(
        self, z: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the Jacobi iteration for `forward`: all features at once, and log_det.

        Each feature is computed from the current values `x` of those before it. The fixed point
        is what `forward` returns; see `ParallelInverse`.
        """
        context = self.check(x, context, inverse=True)
        params = self._params(self._order(x), context)
        x, log_derivative = self.univariate(self._order(z), params)
        return self._order(x), log_derivative.sum(1).to(z.dtype)

    def next(
        self, z: Tensor, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The former name of `jacobi_step`."""
        warnings.warn(
            "Autoregressive.next is now jacobi_step; the former name works until 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.jacobi_step(z, x, context)

    def _order(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Parameters of shape (batch, features, num_params)."""
        given = x.to(next(self.net.parameters(), x).dtype)
        params: Tensor = self.net(given, context).unflatten(1, (self.features, -1))
        if self.first is None or context is None:
            return params
        return params + F.pad(self.first(context).unsqueeze(1), (0, 0, 0, self.features - 1))


def _start_at_zero(layer: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Complete a checkpoint that was saved before there was a net for the first feature."""
    start = f"{prefix}first."
    if any(key.startswith(start) for key in state_dict):
        return
    if f"{prefix}net.final_layer.weight" in state_dict:
        for name, value in layer.get_submodule("first").state_dict().items():
            zero = name.startswith("final.")
            state_dict[start + name] = torch.zeros_like(value) if zero else value
