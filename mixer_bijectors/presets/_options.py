"""The options of `MixerFlow` that a preset has no use for."""

import inspect
from typing import Any

from ..models import MixerFlow

__all__ = ["COUPLINGS", "without"]

# What goes to couplings, or replaces them.
COUPLINGS = ("net", "num_blocks", "univariate", "channel_flow", "patch_flow")
_DEFAULTS = inspect.signature(MixerFlow).parameters


def without(preset: str, options: dict[str, Any], *names: str) -> dict[str, Any]:
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
