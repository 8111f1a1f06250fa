"""MixerFlows with the inner flows of the literature, and hybrids, one function each.

Each takes the arguments of `MixerFlow` that it does not set itself.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import normflows as nf
import torch

from . import nets
from ._checks import check_size
from .chain import Chain
from .flow import Flow
from .layers.autoregressive import Autoregressive
from .layers.continuous import ContinuousFlow
from .layers.kan_layer import KANLayer
from .layers.patch_grid import Patchify
from .models import MixerFlow
from .models.attention_hybrid import attention_hybrid
from .univariate import Affine, RationalQuadratic

__all__ = [
    "affine",
    "attention_hybrid",
    "ffjord",
    "kan",
    "kan_layer",
    "local",
    "maf_hybrid",
    "residual",
    "spline",
]


def affine(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    **options: Any,
) -> MixerFlow:
    """The MixerFlow of the paper: affine couplings with residual perceptrons.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> model = mb.presets.affine((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    return MixerFlow(image_shape, patch_size, num_layers, **options)


def spline(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    **options: Any,
) -> MixerFlow:
    """Couplings of rational-quadratic splines.

    References:
        Durkan et al., Neural spline flows, 2019 (https://arxiv.org/abs/1906.04032)

    Example:
        >>> model = mb.presets.spline((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = _without("spline", options, "univariate")
    univariate = RationalQuadratic(num_bins, bound)
    return MixerFlow(image_shape, patch_size, num_layers, univariate=univariate, **options)


def kan(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 30,
    *,
    grid_size: int = 5,
    **options: Any,
) -> MixerFlow:
    """Affine couplings whose parameters come from Kolmogorov-Arnold networks.

    References:
        Liu et al., KAN: Kolmogorov-Arnold networks, 2024 (https://arxiv.org/abs/2404.19756)

    Example:
        >>> model = mb.presets.kan((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    options = _without("kan", options, "net", "num_blocks")
    net = partial(nets.KAN, grid_size=grid_size)
    return MixerFlow(image_shape, patch_size, num_layers, net=net, **options)


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
    options = _without("kan_layer", options, "hidden_features", *_COUPLINGS)
    flow = partial(KANLayer, grid_size=grid_size, bound=bound)
    sizes = (image_shape, patch_size, num_layers)
    return MixerFlow(*sizes, channel_flow=flow, patch_flow=flow, **options)


def local(
    image_shape: Sequence[int] = (3, 32, 32),
    patch_size: int | Sequence[int] = 4,
    num_layers: int = 4,
    *,
    hidden_features: int = 64,
    num_blocks: int = 1,
    shift_every: int = 2,
    shift: Literal["frame", "cyclic"] | None = "cyclic",
    neighbourhood: int = 3,
    window: int | None = 8,
    **options: Any,
) -> MixerFlow:
    """Couplings over features that read the neighbouring patches, on a grid that rolls.

    The paper's couplings over features see one patch, those over patches one feature. Here the
    former see the other half of the 3 x 3 patches around. The defaults are for minutes of
    training on a CPU; more layers and features take longer and reach further.

    Images of any size take the same time for a pixel and have the same parameters: where there
    are more than `window` rows or columns of patches, patches are mixed within square windows.
    Their side is the largest divisor of rows and columns up to `window`; windows of a single
    patch are an error, and `window=None` mixes all patches at once.

    References:
        English et al., MixerFlow, 2023 (https://arxiv.org/abs/2310.16777)

    Example:
        >>> model = mb.presets.local((3, 16, 16), num_layers=2, hidden_features=16)
        >>> model.log_prob(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """
    return MixerFlow(
        image_shape,
        patch_size,
        num_layers,
        hidden_features=hidden_features,
        num_blocks=num_blocks,
        shift_every=shift_every,
        shift=shift,
        neighbourhood=neighbourhood,
        window=window and _fitting_window(Patchify(image_shape, patch_size).grid, window),
        **_without("local", options, "channel_flow"),
    )


def _fitting_window(grid: tuple[int, int], most: int) -> int | None:
    """The largest side of windows that fill the grid; None for all if there are few patches."""
    check_size("presets.local", "window", most, least=2)
    if max(grid) <= most:
        return None
    side = max(n for n in range(1, most + 1) if all(size % n == 0 for size in grid))
    if side == 1:
        raise ValueError(
            f"presets.local: no windows of 2 to {most} patches fill the grid of {grid[0]} x "
            f"{grid[1]} patches; give another patch_size, or window=None for all patches"
        )
    return side


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
    options = _without("maf_hybrid", options, "patch_flow")

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
    options = _without("residual", options, *_COUPLINGS)

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
    options = _without("ffjord", options, *_COUPLINGS)
    flow = partial(
        ContinuousFlow, tol=tol, hidden_features=hidden_features, context_features=num_classes
    )
    sizes = (image_shape, patch_size, num_layers)
    return MixerFlow(
        *sizes, channel_flow=flow, patch_flow=flow, num_classes=num_classes, **options
    )


_COUPLINGS = ("net", "num_blocks", "univariate", "channel_flow", "patch_flow")


_DEFAULTS = inspect.signature(MixerFlow).parameters


def _without(preset: str, options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Options without those that the preset sets itself, or that go to what it replaces.

    A config file may spell out MixerFlow's defaults for these; any other value is refused.
    """
    refused = [n for n in names if n in options and options[n] != _DEFAULTS[n].default]
    if refused:
        raise TypeError(
            f"presets.{preset}: leave out {' and '.join(refused)}, which this preset sets "
            "itself or has no use for; MixerFlow takes all options"
        )
    return {name: value for name, value in options.items() if name not in names}
