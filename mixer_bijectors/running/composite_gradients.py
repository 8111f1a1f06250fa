"""Rules by which `PullBack` runs layers backwards that hand on what they get to others."""

from typing import TYPE_CHECKING, Any

import normflows as nf
import torch
from torch import Tensor, nn

from ..chain import Chain
from ..layers.mixing import ChannelMixing, Lift, PatchMixing, PixelMixing, WindowMixing
from ..layers.mixing_layer import MixingLayer, MixingStep, NamedChain, NeighbourhoodStep
from ..layers.shift import Shift

if TYPE_CHECKING:
    from .pull_back import PullBack

__all__ = ["RULES"]


def _chain(
    pull: "PullBack",
    layer: Chain | NamedChain | nf.flows.GlowBlock,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    parts: list[Any] = layer.parts if isinstance(layer, NamedChain) else [*layer.flows]
    for part in parts if pull.inverse else reversed(parts):
        y, grad_y = pull(part, y, context, grad_y, grad_log_det)
    return y, grad_y


def _turned(
    pull: "PullBack",
    layer: nf.flows.Reverse | nf.flows.CoupledRationalQuadraticSpline,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    if isinstance(layer, nf.flows.Reverse):  # which hands on no context
        return pull.turned()(layer.flow, y, None, grad_y, grad_log_det)
    return pull.turned()(layer.prqct, y, context, grad_y, grad_log_det)


def _lift(
    pull: "PullBack",
    layer: Lift,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        spread = layer.context_of_vectors(y, context)
    own = None if spread is None else spread.detach().requires_grad_(spread.requires_grad)
    x, grad_x = pull(
        layer.flow,
        layer.vectors(y),
        own,
        layer.vectors(grad_y),
        grad_log_det.repeat_interleave(layer.copies(y)),
    )
    if spread is not None and own in pull.grads:
        pull.collect(nn.Module(), [spread], [pull.grads.pop(own)], [], context)
    return layer.whole(x, y).contiguous(), layer.whole(grad_x, y).contiguous()


def _shift(
    pull: "PullBack",
    layer: Shift,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    (window, frame), (grad_window, grad_frame) = map(layer.take_out, (y, grad_y))
    window, grad_window = pull(layer.flow, window, context, grad_window, grad_log_det)
    return layer.put_back(window, frame), layer.put_back(grad_window, grad_frame)


RULES: dict[type[nn.Module], Any] = {
    **dict.fromkeys((Chain, MixingLayer, MixingStep, NeighbourhoodStep), _chain),
    nf.flows.GlowBlock: _chain,
    **dict.fromkeys((nf.flows.Reverse, nf.flows.CoupledRationalQuadraticSpline), _turned),
    **dict.fromkeys((ChannelMixing, PatchMixing, PixelMixing, WindowMixing), _lift),
    Shift: _shift,
}
