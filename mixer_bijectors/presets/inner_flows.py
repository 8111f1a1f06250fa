"""MixerFlows that mix by other flows than couplings."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import normflows as nf
import torch

from ..chain import Chain
from ..flow import Flow
from ..layers.autoregressive import Autoregressive
from ..layers.continuous import ContinuousFlow
from ..layers.kan_layer import KANLayer
from ..models import MixerFlow
from ..univariate import Affine
from ._options import COUPLINGS, without

__all__ = ["ffjord", "kan_layer", "maf_hybrid", "residual"]


def kan_layer(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    grid_size: int = 8,
    bound: float = 5.0,
    **options: Any,
) -> MixerFlow:
    """Invertible Kolmogorov-Arnold layers, which need no net at all, in place of couplings.

    References:
        Liu et al., KAN: Kolmogorov-Arnold networks, 2024 (https://arxiv.org/abs/2404.19756)

    Example:
        >>> model = mb.presets.kan_layer((3, 16, 16), num_layers=2)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = without("kan_layer", options, "hidden_features", *COUPLINGS)
    flow = partial(KANLayer, grid_size=grid_size, bound=bound)
    sizes = (image_shape, patch_size, num_layers)
    return MixerFlow(*sizes, channel_flow=flow, patch_flow=flow, **options)


def maf_hybrid(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    hidden_factor: int = 4,
    num_classes: int = 0,
    **options: Any,
) -> MixerFlow:
    """Two masked autoregressive layers of opposite order over the patches, couplings beside.

    Densities take one pass, samples one pass for each patch. `hidden_factor` is the width of
    the masked nets over the number of patches.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777), and
        Papamakarios et al., Masked autoregressive flow for density estimation, 2017
        (https://arxiv.org/abs/1705.07057)

    Example:
        >>> model = mb.presets.maf_hybrid((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = without("maf_hybrid", options, "patch_flow")

    def patch_flow(num_patches: int) -> Flow:
        return Chain(
            Autoregressive(
                num_patches,
                Affine(max_log_scale=1.0),
                hidden_features=hidden_factor * num_patches,
                num_blocks=1,
                context_features=num_classes,
                reverse=reverse,
            )
            for reverse in (True, False)
        )

    return MixerFlow(
        image_shape,
        patch_size,
        num_layers,
        patch_flow=patch_flow,
        num_classes=num_classes,
        **options,
    )


def residual(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    hidden_features: int = 64,
    **options: Any,
) -> MixerFlow:
    """Lipschitz-constrained residual flows of normflows in place of couplings.

    Their log-determinants are unbiased random estimates, and their inverses fixed points. Call
    `normflows.utils.update_lipschitz(model, 5)` after each step of the optimiser, as with any
    model that holds `normflows.flows.Residual`.

    References:
        Chen et al., Residual flows for invertible generative modeling, 2019
        (https://arxiv.org/abs/1906.02735)

    Example:
        >>> model = mb.presets.residual((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = without("residual", options, *COUPLINGS)

    def flow(size: int) -> Flow:
        device = torch.empty(0).device  # the default one
        with torch.device("cpu"):  # as these nets of normflows are built nowhere else
            net = nf.nets.LipschitzMLP(
                [size, hidden_features, size], init_zeros=True, lipschitz_const=0.9
            )
            return nf.flows.Residual(net, reduce_memory=True).to(device)

    sizes = (image_shape, patch_size, num_layers)
    return MixerFlow(*sizes, channel_flow=flow, patch_flow=flow, **options)


def ffjord(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    hidden_features: int = 64,
    tol: float = 1e-5,
    num_classes: int = 0,
    **options: Any,
) -> MixerFlow:
    """Continuous-time flows in place of couplings; needs the extra `ode`.

    References:
        Grathwohl et al., FFJORD, 2018 (https://arxiv.org/abs/1810.01367)

    Example:
        >>> model = mb.presets.ffjord((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = without("ffjord", options, *COUPLINGS)
    flow = partial(
        ContinuousFlow, tol=tol, hidden_features=hidden_features, context_features=num_classes
    )
    sizes = (image_shape, patch_size, num_layers)
    return MixerFlow(
        *sizes, channel_flow=flow, patch_flow=flow, num_classes=num_classes, **options
    )
