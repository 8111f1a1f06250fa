"""Tells a compiler what is the same in each run of a graph."""

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["constant_in_graphs"]

_F = TypeVar("_F", bound=Callable[..., Any])


def constant_in_graphs(function: _F) -> _F:
    """Have `torch.compile` call a function once, and take its result for a constant.

    It sets the mark that `torch.compiler.assume_constant_result` sets, which would import the
    compiler to do so, and that takes longer than all other imports together.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
