"""Rules by which `PullBack` runs spline layers of normflows and nflows backwards."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..flow import no_autocast
from .exchange import is_known
from .faster_splines import SplineCDF, SplineCoupling, pull_back, table_of, width_of_net

if TYPE_CHECKING:
    from .pull_back import PullBack

__all__ = ["rule"]


def rule(layer: Any, y: Tensor, context: Tensor | None) -> Any:
    """The rule of a layer whose methods and settings are known, or None."""
    dtypes = {y.dtype, *(p.dtype for p in layer.parameters())}
    if len(dtypes) > 1 or layer.tails not in ("linear", "circular"):
        return None
    for faster, function in ((SplineCoupling, _coupling), (SplineCDF, _table)):
        known = isinstance(layer, faster) or is_known(layer, faster)
        if known and faster.accepts(layer):
            return function
    return None


def _coupling(
    pull: "PullBack",
    layer: Any,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    kept, transformed = (layer.identity_features, layer.transform_features)
    stays, grad_stays = (t.index_select(1, kept) for t in (y, grad_y))
    moves, grad_moves = (t.index_select(1, transformed) for t in (y, grad_y))
    own = layer.unconditional_transform  # of the half that the net reads, in `forward` after it
    if own is not None and not pull.inverse:
        stays, grad_stays = pull(own, stays, None, grad_stays, grad_log_det)
    seen = stays.detach().requires_grad_()
    with torch.enable_grad():
        # Parameters of a feature follow each other along the axis of channels.
        params = layer.transform_net(seen, context).unflatten(1, (len(transformed), -1))
        params = params.movedim(2, -1)
    grad_log = grad_log_det.view(-1, *[1] * (y.dim() - 1)).expand_as(moves)
    with no_autocast(y):
        given = params.detach().to(y.dtype)
        x, grad_x, grad_params = pull_back(
            layer, moves, given, pull.inverse, grad_moves, grad_log, width_of_net(layer)
        )
    grads = [grad_params.to(params.dtype)]
    (more,) = pull.collect(layer.transform_net, [params], grads, [seen], context)
    grad_stays = grad_stays if more is None else grad_stays + more
    if own is not None and pull.inverse:
        stays, grad_stays = pull(own, stays, None, grad_stays, grad_log_det)
    pairs = ((stays, x), (grad_stays, grad_x))
    whole, grad_whole = (
        torch.empty_like(y).index_copy(1, kept, a).index_copy(1, transformed, b)
        for a, b in pairs
    )
    return whole, grad_whole


def _table(
    pull: "PullBack",
    layer: Any,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        params = table_of(layer)
    grad_log = grad_log_det.view(-1, *[1] * (y.dim() - 1)).expand_as(y)
    with no_autocast(y):
        x, grad_x, grad = pull_back(layer, y, params.detach(), pull.inverse, grad_y, grad_log)
    pull.collect(layer, [params], [grad], [])
    return x, grad_x
