"""Tables of checks: what is checked, and on which layer."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from conftest import LAYERS, Case

__all__ = ["Check", "Suite", "close", "refuses"]


@dataclass(frozen=True)
class Check:
    """One check, which raises if it fails, and the layer of the registry that it is run on."""

    suite: str
    name: str
    layer: str
    run: Callable[[], object]

    def __str__(self) -> str:
        return "-".join(filter(None, (self.suite, self.name, self.layer)))

    def __call__(self) -> None:
        torch.manual_seed(0)
        self.run()


class Suite:
    """The checks of one library, in the order in which they are defined.

    `left_out` says which checks of that library apply to nothing here, and why.
    """

    def __init__(self, name: str, left_out: Mapping[str, str]) -> None:
        self.name = name
        self.left_out = left_out
        self.checks: list[Check] = []

    def each_layer(
        self, where: Callable[[str, Case], bool] = lambda name, case: True, **options: Iterable
    ) -> Callable[[Callable], Callable]:
        """Run a function of a case for the layers that `where` picks, with all options."""

        def add(function: Callable) -> Callable:
            for name, case in LAYERS.items():
                if where(name, case):
                    self._add(partial(function, case), function.__name__, name, options)
            return function

        return add

    def each(self, layer: str = "", /, **options: Iterable) -> Callable[[Callable], Callable]:
        """Run a function with all options; it builds its layers, of one kind or several."""

        def add(function: Callable) -> Callable:
            self._add(function, function.__name__, layer, options)
            return function

        return add

    def _add(
        self, run: Callable, name: str, layer: str, options: Mapping[str, Iterable]
    ) -> None:
        for values in itertools.product(*options.values()):
            chosen = dict(zip(options, values))
            label = "-".join([name, *map(_label, values)])
            self.checks.append(Check(self.name, label, layer, partial(run, **chosen)))


def close(actual: Any, expected: Any, eps: float) -> None:
    """Compare numbers by their largest absolute difference."""
    torch.testing.assert_close(actual, expected, atol=eps, rtol=0)


def refuses(run: Callable[..., object], *arguments: Any) -> None:
    """Check that a call raises a ValueError."""
    try:
        run(*arguments)
    except ValueError:
        return
    raise AssertionError("no ValueError was raised")


def _label(value: object) -> str:
    return str(value).removeprefix("torch.").replace(" ", "")
