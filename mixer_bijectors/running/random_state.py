"""The state of all generators of random numbers that a layer may draw from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["RandomState"]


class RandomState:
    """The present state: of torch on the CPU and on the device of a tensor, and of numpy.

    Residual flows of normflows draw the length of their series from numpy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.torch = [torch.get_rng_state()]
        if device.type not in ("cpu", "meta"):
            self.torch.append(torch.get_device_module(device).get_rng_state(device))
        self.numpy: Any = np.random.get_state()  # noqa: NPY002

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RandomState)
            and all(map(torch.equal, self.torch, other.torch))
            and self.numpy[2:] == other.numpy[2:]
            and np.array_equal(self.numpy[1], other.numpy[1])
        )

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """A context that draws the same numbers again, and leaves no trace of it."""
        now = RandomState(self.device)
        try:
            self._set()
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.set_rng_state(self.torch[0])
        for state in self.torch[1:]:
            torch.get_device_module(self.device).set_rng_state(state, self.device)
        np.random.set_state(self.numpy)  # noqa: NPY002
