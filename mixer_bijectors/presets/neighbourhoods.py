"""A MixerFlow whose couplings read the neighbours of a patch."""

from collections.abc import Sequence
from typing import Any, Literal

from .._checks import check_size
from ..layers.patch_grid import Patchify
from ..models import MixerFlow
from ._options import without

__all__ = ["local"]


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
        **without("local", options, "channel_flow"),
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
