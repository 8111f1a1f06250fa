"""Rules by which `PullBack` runs the layers of this library backwards that hold no others."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..flow import no_autocast
from ..layers.actnorm import ActNorm
from ..layers.coupling import Coupling, HalvesCoupling
from ..layers.lu_linear import LULinear
from ..layers.matrix_coupling import MatrixCoupling
from ..layers.patch_grid import Patchify
from ..layers.shift import CyclicShift

if TYPE_CHECKING:
    from .pull_back import PullBack

__all__ = ["RULES"]


def _coupling(
    pull: "PullBack",
    layer: HalvesCoupling,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    context = context if layer.context_features else None
    (kept, transformed), (grad_kept, grad_transformed) = map(layer.split, (y, grad_y))
    kept = kept.detach().requires_grad_()
    with torch.enable_grad():
        params = layer.params(kept, transformed, context)
    grad_log = grad_log_det.view(-1, *[1] * (y.dim() - 1)).expand_as(transformed)
    with no_autocast(y):
        x, grad_x, grad_params = layer.univariate.pull_back(
            transformed, params.detach(), pull.inverse, grad_transformed, grad_log
        )
    (more,) = pull.collect(layer.net, [params], [grad_params], [kept], context)
    grad_kept = grad_kept if more is None else grad_kept + more
    return layer.join(kept.detach(), x), layer.join(grad_kept, grad_x)


def _actnorm(
    pull: "PullBack",
    layer: ActNorm,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    back, offset, _ = layer.affine(inverse=not pull.inverse)
    x = torch.addcmul(offset, y, back)
    with torch.enable_grad():
        results = layer.affine(inverse=pull.inverse)
    grads = ((grad_y * x).sum(0), grad_y.sum(0), grad_log_det.sum())
    pull.collect(layer, results, grads, [])
    return x, grad_y * results[0].detach()


def _linear(
    pull: "PullBack",
    layer: LULinear,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    if not pull.inverse:  # which solves with the factors of the matrix
        return pull.by_autograd(layer, y, context, grad_y, grad_log_det)
    with no_autocast(y):
        x, _ = layer.transform(y)
        with torch.enable_grad():
            weight, log_abs_det = layer.weight(), layer.factors.diagonal().sum()
        pull.collect(layer, (weight, log_abs_det), (grad_y.mT @ x, grad_log_det.sum()), [])
        return x, grad_y @ weight.detach()


def _permutation(
    pull: "PullBack",
    layer: Patchify | CyclicShift,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    x, grad_x = (layer.transform(t, inverse=not pull.inverse)[0] for t in (y, grad_y))
    return x, grad_x


RULES: dict[type[nn.Module], Any] = {
    Coupling: _coupling,
    MatrixCoupling: _coupling,
    LULinear: _linear,
    ActNorm: _actnorm,
    Patchify: _permutation,
    CyclicShift: _permutation,
}
