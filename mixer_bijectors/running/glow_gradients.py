"""Rules by which `PullBack` runs the parts of normflows' `GlowBlock` backwards."""

from typing import TYPE_CHECKING, Any

import normflows as nf
import torch
from normflows.flows.affine.coupling import AffineConstFlow
from torch import Tensor, nn
from torch.nn import functional as F

from .._dependencies import has_hooks, matrix_of_convolution
from ..flow import no_autocast
from ..univariate.affine import pull_back_affine
from .known_layers import runs_methods_of

if TYPE_CHECKING:
    from .pull_back import PullBack

__all__ = ["RULES"]


def _coupling(
    pull: "PullBack",
    layer: Any,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    split, coupling, merge = layer.flows
    if not (coupling.scale and split.mode.startswith("channel") and _is_known(layer)):
        return pull.by_autograd(layer, y, context, grad_y, grad_log_det)
    (kept, moved), (grad_kept, grad_moved) = (split(t)[0] for t in (y, grad_y))
    kept = kept.detach().requires_grad_()
    with torch.enable_grad():
        params = coupling.param_map(kept)
        shift, log_scale = params[:, 0::2], params[:, 1::2]
        if coupling.scale_map != "exp":
            log_scale = F.logsigmoid(log_scale + 2)
        if coupling.scale_map == "sigmoid":
            log_scale = -log_scale
    with no_autocast(y):
        x, grad_x, *grads = pull_back_affine(
            moved,
            log_scale.detach().to(y.dtype),
            shift.detach().to(y.dtype),
            pull.inverse,
            grad_moved,
            _of_each(grad_log_det, moved),
        )
    grads = [grad.to(params.dtype) for grad in grads]
    (more,) = pull.collect(coupling.param_map, (log_scale, shift), grads, [kept])
    grad_kept = grad_kept if more is None else grad_kept + more
    return merge([kept.detach(), x])[0], merge([grad_kept, grad_x])[0]


def _convolution(
    pull: "PullBack",
    layer: Any,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    if not (pull.inverse and layer.use_lu):
        return pull.by_autograd(layer, y, context, grad_y, grad_log_det)
    pixels = y.shape[2] * y.shape[3]
    with torch.enable_grad():
        matrix, log_det = matrix_of_convolution(layer, inverse=False), layer.log_S.sum()
    with no_autocast(y):
        x = F.conv2d(y, matrix_of_convolution(layer, inverse=True)[..., None, None])
        grad_matrix = torch.einsum("bihw,bjhw->ij", grad_y, x)
        grad_x = F.conv2d(grad_y, matrix.detach().T[..., None, None])
    pull.collect(layer, (matrix, log_det), (grad_matrix, pixels * grad_log_det.sum()), [])
    return x, grad_x


def _affine(
    pull: "PullBack",
    layer: Any,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    x, grad_x, *grads = pull_back_affine(
        y,
        layer.s.detach(),
        layer.t.detach(),
        pull.inverse,
        grad_y,
        _of_each(grad_log_det, y),
    )
    for tensor, grad in zip((layer.s, layer.t), grads):
        if tensor.requires_grad:
            pull.add(tensor, grad.sum_to_size(tensor.shape))
    return x, grad_x


def _of_each(grad_log_det: Tensor, y: Tensor) -> Tensor:
    """The gradient by the log-derivative of each number from that by their sum."""
    return grad_log_det.view(-1, *[1] * (y.dim() - 1)).expand_as(y)


def _is_known(block: Any) -> bool:
    kinds = (nf.flows.Split, nf.flows.AffineCoupling, nf.flows.Merge)
    return not any(map(has_hooks, block.flows)) and all(
        type(part) is kind and runs_methods_of(part, kind)
        for part, kind in zip(block.flows, kinds)
    )


RULES: dict[type[nn.Module], Any] = {
    nf.flows.AffineCouplingBlock: _coupling,
    nf.flows.Invertible1x1Conv: _convolution,
    nf.flows.ActNorm: _affine,
    AffineConstFlow: _affine,
}
