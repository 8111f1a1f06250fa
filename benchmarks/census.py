"""Memory of a call: a census of the storages of tensors, and the growth of the resident set."""

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["Census", "resident_growth"]


class Census(TorchDispatchMode):
    """The most bytes of storages that lived at once, without those that are known."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.known or key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.bytes += self.sizes[key]
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


def resident_growth(run: Callable[[], object]) -> int | None:
    """Bytes by which the resident set grows at most in a call; None where Linux is not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        before = _status("VmRSS")
        run()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
