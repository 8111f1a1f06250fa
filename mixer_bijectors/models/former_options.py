"""Arguments of `TarFlow.sample` from before `Guidance` held them; accepted until 0.3."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from ..layers.transformer_autoregressive import Guidance

__all__ = ["FORMER_OPTIONS", "accept_former_options"]

FORMER_OPTIONS = ("guide", "annealed", "attention_temperature")
# What could be passed by position, after the labels.
_POSITIONS = (
    *("guidance", "guide", "annealed", "temperature", "attention_temperature"),
    *("method", "generator"),
)


def accept_former_options(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Let `sample` take guidance by position, and arguments of `Guidance` as its own."""

    @functools.wraps(sample)
    def accepting(
        self: Any, num_samples: int = 1, labels: Any = None, *former: Any, **options: Any
    ) -> Any:
        name = type(self).__name__
        options = dict(zip(_POSITIONS, former)) | options
        given = {key: options.pop(key) for key in FORMER_OPTIONS if key in options}
        if former:
            _warn(f"{name}.sample: pass guidance and all that follows it by name")
        elif given:
            argument, value = next(iter(given.items()))
            _warn(
                f"{name}.sample: {argument} is now an argument of Guidance; pass "
                f"guidance=Guidance(weight, {argument}={value!r})"
            )
        if given:
            options["guidance"] = Guidance(options.get("guidance", 0.0), **given)
        return sample(self, num_samples, labels, **options)

    return accepting


def _warn(message: str) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=3)
