"""Coupling layers."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .._checks import check_builder, check_flag, check_output, check_univariate
from ..bijection import Bijection
from ..nets import ResidualMLP
from ..univariate import Affine, Univariate

__all__ = ["Coupling", "HalvesCoupling"]


class HalvesCoupling(Bijection):
    """A coupling, of which subclasses define the halves.

    A subclass sets `univariate` and `net`.
    """

    univariate: Univariate
    net: nn.Module

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The half that stays, and the half that is transformed."""
        raise NotImplementedError

    def join(self, kept: Tensor, transformed: Tensor) -> Tensor:
        """The whole of both halves."""
        raise NotImplementedError

    def params(self, kept: Tensor, like: Tensor, context: Tensor | None) -> Tensor:
        """Parameters that the net computes from the half that stays, (..., num_params).

        Args:
            kept: the half that stays.
            like: of the shape of the half that is transformed.
            context: that of the layer.
        """
        given = kept.to(next(self.net.parameters(), kept).dtype)
        params = self.net(given) if context is None else self.net(given, context)
        size = like.shape[-1] * self.univariate.num_params
        check_output(type(self).__name__, params, *like.shape[:-1], size)
        # Parameter-major: each parameter of all features is one contiguous run of memory.
        return params.unflatten(-1, (self.univariate.num_params, -1)).transpose(-1, -2)

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        kept, transformed = self.split(x)
        params = self.params(kept, transformed, context)
        transformed, log_derivative = self.univariate(transformed, params, inverse)
        return self.join(kept, transformed), log_derivative.flatten(1).sum(1)


class Coupling(HalvesCoupling):
    r"""Transforms one half of the features with parameters that a net computes from the other.

    .. math:: x_1 = z_1, \qquad x_2 = f(z_2; \mathrm{net}(z_1, \mathrm{context}))

    Args:
        features: number of features, at least 2. The first half stays, the larger one if odd.
        univariate: the elementwise bijection :math:`f`.
        hidden_features: width of the net.
        num_blocks: residual blocks of the default net.
        context_features: size of the context; 0 for an unconditional layer, which ignores any.
        net: builds the conditioner, called as `net(in_features, out_features,
            hidden_features=..., context_features=...)`; by default `nets.ResidualMLP`. Its
            output holds the first parameter of all features, then the second, and starts at
            zero for the layer to start as the identity.
        reverse: transform the first half by the second instead.

    Shapes: (batch, features) in and out, context (batch, context_features), log_det (batch,).

    Raises:
        TypeError: the input is not floating point, or of higher precision than the net;
            `univariate` is a class, or `net` a module instead of what builds one.
        ValueError: fewer than 2 features; an input not of shape (batch, features); a context
            that is missing or not of shape (batch, context_features); a net that returns
            another shape than (batch, out_features).

    References:
        Dinh et al., Density estimation using Real NVP, 2016 (https://arxiv.org/abs/1605.08803)

    Example:
        >>> layer = Coupling(48, mb.Affine(), hidden_features=64, context_features=10)
        >>> z, log_det = layer.inverse(torch.randn(5, 48), context=torch.randn(5, 10))
        >>> z.shape, log_det.shape
        (torch.Size([5, 48]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        univariate: Univariate = Affine(),
        *,
        hidden_features: int = 128,
        num_blocks: int = 2,
        context_features: int = 0,
        net: Callable[..., nn.Module] | None = None,
        reverse: bool = False,
    ) -> None:
        super().__init__((features,), context_features=context_features)
        if features < 2:
            raise ValueError(
                f"{type(self).__name__}: features must be at least 2, one half for the other, "
                f"got {features}"
            )
        check_univariate(type(self).__name__, univariate)
        check_flag(type(self).__name__, "reverse", reverse)
        check_builder(type(self).__name__, "net", net)
        self.features = features
        self.univariate = univariate
        self.reverse = reverse
        self.sizes = ((features + 1) // 2, features // 2)
        kept, transformed = self.sizes[::-1] if reverse else self.sizes
        net = net or partial(ResidualMLP, num_blocks=num_blocks)
        self.net = net(
            kept,
            transformed * univariate.num_params,
            hidden_features=hidden_features,
            context_features=context_features,
        )

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, dim=1)
        return (second, first) if self.reverse else (first, second)

    def join(self, kept: Tensor, transformed: Tensor) -> Tensor:
        halves = (transformed, kept) if self.reverse else (kept, transformed)
        return torch.cat(halves, dim=1)
