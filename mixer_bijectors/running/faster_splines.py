"""Runs rational-quadratic splines of normflows and nflows by the kernel of this library."""

from typing import Any

import nflows.transforms as nflows_transforms
import torch
from nflows.transforms import autoregressive as nflows_autoregressive
from nflows.transforms import coupling as nflows_coupling
from nflows.transforms import nonlinearities as nflows_nonlinearities
from nflows.transforms.base import InputOutsideDomain
from normflows.flows.neural_spline import autoregressive as normflows_autoregressive
from normflows.flows.neural_spline import coupling as normflows_coupling
from torch import Tensor

from .._checks import is_readable
from ..univariate.rational_quadratic_form import Form, softplus_of_one
from ..univariate.rational_quadratic_kernel import pull_back_unit_spline, unit_spline
from .exchange import Faster

__all__ = ["LAYERS", "SplineCDF", "SplineCoupling", "pull_back", "table_of", "width_of_net"]

# The `ends` of a `Form` for each kind of tails.
_ENDS = {None: "free", "linear": "identity", "circular": "equal"}
_NFLOWS = nflows_autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
_NORMFLOWS = normflows_autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive


class _Spline(Faster):
    """Base class of the faster spline layers, which checks the settings of a layer."""

    @classmethod
    def accepts(cls, layer: Any) -> bool:
        """Whether the tails are known, and the least widths and slopes leave room for bins."""
        tails = layer.tails if isinstance(layer.tails, list | tuple) else [layer.tails]
        of_nflows = isinstance(layer, nflows_transforms.Transform)
        num_bins = _num_bins(layer)
        return (
            all(tail in _ENDS and not (tail == "circular" and of_nflows) for tail in tails)
            and num_bins >= 2
            and max(layer.min_bin_width, layer.min_bin_height) * num_bins <= 1
            and 0 <= layer.min_derivative < 1
        )


class SplineCoupling(_Spline):
    """The elementwise splines of a coupling."""

    known = {
        name: (
            getattr(nflows_coupling.PiecewiseRationalQuadraticCouplingTransform, name),
            getattr(normflows_coupling.PiecewiseRationalQuadraticCoupling, name),
        )
        for name in ("forward", "inverse", "_piecewise_cdf", "_transform_dim_multiplier")
    }

    def _piecewise_cdf(
        self: Any, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        return _evaluate(self, inputs, transform_params, inverse, width_of_net(self))


class SplineAutoregressive(_Spline):
    """The elementwise splines of an autoregressive layer."""

    known = {
        name: (getattr(_NFLOWS, name), getattr(_NORMFLOWS, name))
        for name in ("forward", "inverse", "_elementwise", "_output_dim_multiplier")
    }

    def _elementwise(
        self: Any, inputs: Tensor, autoregressive_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        params = autoregressive_params.view(*inputs.shape[:2], self._output_dim_multiplier())
        hidden = getattr(self.autoregressive_net, "hidden_features", 1)
        outputs, log_slopes = _evaluate(self, inputs, params, inverse, hidden)
        return outputs, log_slopes.sum(1)


class SplineCDF(_Spline):
    """Elementwise splines whose parameters are weights of the layer, not computed by a net."""

    known = {
        name: (
            getattr(nflows_nonlinearities.PiecewiseRationalQuadraticCDF, name),
            getattr(normflows_coupling.PiecewiseRationalQuadraticCDF, name),
        )
        for name in ("forward", "inverse", "_spline")
    }

    def _spline(self: Any, inputs: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        outputs, log_slopes = _evaluate(self, inputs, table_of(self), inverse)
        return outputs, log_slopes.flatten(1).sum(1)


def width_of_net(layer: Any) -> int:
    """The width by whose root a coupling divides widths and heights."""
    net = layer.transform_net
    return int(getattr(net, "hidden_features", getattr(net, "hidden_channels", 1)))


def table_of(layer: Any) -> Tensor:
    """The parameters of a layer that holds those of its splines."""
    parts = (
        layer.unnormalized_widths,
        layer.unnormalized_heights,
        layer.unnormalized_derivatives,
    )
    return torch.cat(parts, dim=-1)


def _num_bins(layer: Any) -> int:
    if isinstance(layer, SplineCDF) or hasattr(layer, "unnormalized_widths"):
        return int(layer.unnormalized_widths.shape[-1])
    return int(layer.num_bins)


def _evaluate(
    layer: Any, x: Tensor, params: Tensor, inverse: bool, hidden: int = 1
) -> tuple[Tensor, Tensor]:
    """Values and log-slopes of the splines of a layer, in the dtype of `x`."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, params.dtype), torch.float32)
    params = params.to(dtype)[(None,) * (x.dim() + 1 - params.dim())]
    tails = layer.tails
    per_feature = isinstance(tails, list | tuple)
    if per_feature:
        params = _set_ends(params, tails, 2 * _num_bins(layer), layer.min_derivative)
    form = _form(layer, "free" if per_feature else _ENDS[tails], hidden)
    if tails is None:
        return _on_unit_interval(layer, x, params, form, inverse)
    bound = layer.tail_bound
    inside = x.abs() <= bound
    # Inputs outside of the bound are replaced by 0, where gradients are finite; the results for
    # them are not used.
    u = torch.where(inside, x.to(dtype) / (2 * bound), 0.0).to(dtype)
    v, log_slopes = unit_spline(u, params, form, inverse)
    # With a kind of tails for each feature, normflows returns 0 outside of the bound, not x.
    y = torch.where(inside, (v * (2 * bound)).to(x.dtype), 0.0 if per_feature else x)
    return y, torch.where(inside, log_slopes, 0.0).to(x.dtype)


def pull_back(
    layer: Any,
    y: Tensor,
    params: Tensor,
    inverse: bool,
    grad_y: Tensor,
    grad_log: Tensor,
    hidden: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Univariate.pull_back`, for the splines of a layer with one kind of tails."""
    form, size = _form(layer, _ENDS[layer.tails], hidden), 2 * layer.tail_bound
    inside = y.abs() <= layer.tail_bound
    v, grad_v, grad_log = (
        torch.where(inside, t, 0.0) for t in (y / size, grad_y * size, grad_log)
    )
    given = params[(None,) * (y.dim() + 1 - params.dim())]
    u, grad_u, grad = pull_back_unit_spline(v, given, form, inverse, grad_v, grad_log)
    x, grad_x = torch.where(inside, u * size, y), torch.where(inside, grad_u / size, grad_y)
    return x, grad_x, grad.view_as(params)


def _form(layer: Any, ends: str, hidden: int) -> Form:
    return Form(
        _num_bins(layer),
        ends=ends,
        slopes="softplus",
        min_width=layer.min_bin_width,
        min_height=layer.min_bin_height,
        min_slope=layer.min_derivative,
        scale=hidden**-0.5,
    )


def _on_unit_interval(
    layer: Any, x: Tensor, params: Tensor, form: Form, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Splines on [0, 1] without tails; other inputs raise, or give NaN if not readable."""
    inside = (x >= 0) & (x <= 1)
    if is_readable(x) and not bool(inside.all()):
        of_nflows = isinstance(layer, nflows_transforms.Transform)
        raise (InputOutsideDomain if of_nflows else ValueError)(
            f"{type(layer).__name__}: splines without tails take inputs from 0 to 1, got "
            f"{x.min():.3g} to {x.max():.3g}; scale them, or build it with tails='linear'"
        )
    u = torch.where(inside, x.to(params.dtype) - 0.5, 0.0)
    v, log_slopes = unit_spline(u, params, form, inverse)
    return tuple(  # type: ignore[return-value]
        torch.where(inside, t, float("nan")).to(x.dtype) for t in (v + 0.5, log_slopes)
    )


def _set_ends(params: Tensor, tails: Any, first: int, min_slope: float) -> Tensor:
    """Parameters with the slopes at both ends that the tails of each feature require."""
    linear, circular = (
        torch.tensor([[tail == kind] for tail in tails], device=params.device)
        for kind in ("linear", "circular")
    )
    one = softplus_of_one(min_slope)
    start, end = params[..., first : first + 1], params[..., -1:]
    start = torch.where(linear, one, start)
    end = torch.where(linear | circular, start, end)
    return torch.cat((params[..., :first], start, params[..., first + 1 : -1], end), dim=-1)


LAYERS = (SplineCoupling, SplineAutoregressive, SplineCDF)
