"""A GPU that is pretended, on which programs run where there is none."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

__all__ = ["pretended_gpu", "value", "why_not"]

aten = torch.ops.aten
# What stops the host until the GPU has computed a value, or how large a result is.
_READS = {
    aten._linalg_check_errors,
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
_INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_COPIES = {aten._to_copy, aten.copy, aten.copy_}


def why_not() -> str | None:
    """Why this build of torch cannot pretend to have a GPU, or None."""
    if torch.version.cuda is None:
        return "tensors on a pretended GPU need a build of torch that is linked with CUDA"
    return None


@contextmanager
def pretended_gpu() -> Iterator[set[str]]:
    """A context in which device "cuda" works without a GPU, and which notes synchronisations.

    `FakeTensorMode` gives each tensor a device, a shape and a dtype, and raises where tensors
    on the CPU meet those on the GPU. Beside each of its tensors, which hold no values, stands
    one on the CPU which does: so that results are right, and code that looks at values takes
    the way that it takes on a GPU. Gradients need a driver.

    Yields:
        Where the host synchronised so far, by reading a value or by copying one to the GPU:
        `module.function` of this library, without `mixer_bijectors` before it, or `normflows`
        or `nflows` for what the layers of these do by themselves.
    """
    replace = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    mode = _PretendedGPU()
    try:
        with (
            patch.object(torch, "Generator", _Generator),
            patch.object(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state()),
            patch.object(torch.cuda, "set_rng_state", lambda s, *_: torch.set_rng_state(s)),
            sdpa_kernel(SDPBackend.MATH),  # other kernels have a name for each kind of device
            FakeTensorMode(allow_non_fake_inputs=True),
            _Values(),
            mode,
        ):
            yield mode.places
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(replace)
        _Generator.known.clear()


class _PretendedGPU(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks what a tensor is, not for what is in it
            return func(*args, **kwargs)
        with self:  # parts of which it may be made, as in inference mode
            results = func.decompose(*args, **kwargs)
        if results is not NotImplemented:
            return results
        self._check_generator(func, args, kwargs)
        if _synchronises(func.overloadpacket, args, kwargs):
            self.places.add(_place())
        with unset_fake_temporarily():
            values = func(*tree_map(value, args), **tree_map(value, kwargs))
        if not any(isinstance(leaf, Tensor) for leaf in tree_iter(values)):
            return values
        try:
            results = func(*args, **kwargs)
        except DynamicOutputShapeException:
            device = next(_tensors(args)).device
            results = tree_map(lambda t: _like(t, device), values)
        return _pair(results, values)

    @staticmethod
    def _check_generator(func: Any, args: Any, kwargs: Any) -> None:
        generator = kwargs.get("generator")
        if generator is None:
            return
        made_for = _Generator.known.get(generator._cdata, generator).device
        device = kwargs.get("device") or next(_tensors(args)).device
        if torch.device(device).type != made_for.type:
            raise RuntimeError(f"{func}: a generator on {made_for} for a tensor on {device}")


class _Generator(torch.Generator):
    """A generator that says which device it is for."""

    # By address, all that operations know of a generator.
    known: dict[int, "_Generator"] = {}

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        self = super().__new__(cls)
        self.pretended = torch.device(device)
        cls.known[self._cdata] = self
        return self

    @property
    def device(self) -> torch.device:
        return self.pretended


class _Values(TorchFunctionMode):
    """Arrays of tensors on the CPU, and copies: both reach for memory, which has no values."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.numpy and args[0].device.type == "cpu":
            with _disable_current_modes():
                return value(args[0]).numpy()
        if func is Tensor.__deepcopy__ and isinstance(args[0], FakeTensor):
            tensor, memo = args
            if id(tensor) not in memo:
                copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
                memo[id(tensor)] = copied
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def value(leaf: Any) -> Any:
    """What stands for an argument on the CPU: the values of a tensor, or another device."""
    if isinstance(leaf, FakeTensor):
        return leaf.on_cpu
    if isinstance(leaf, torch.device) and leaf.type == "cuda":
        return torch.device("cpu")
    return leaf


def _pair(results: Any, values: Any) -> Any:
    """Results without values that carry those values from now on."""
    flat = list(tree_iter(values))
    for result, on_cpu in zip(tree_iter(results), flat):
        if isinstance(result, FakeTensor):
            result.on_cpu = on_cpu
    return results


def _like(values: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=device)


def _tensors(arguments: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(arguments) if isinstance(leaf, Tensor))


def _synchronises(operation: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation stops the host until a GPU has done its work."""
    devices = [t.device.type for t in _tensors((args, kwargs))]
    devices += [leaf.type for leaf in tree_iter(kwargs) if isinstance(leaf, torch.device)]
    if "cuda" not in devices:
        return False
    if operation in _COPIES:
        # The last argument of `copy_` is `non_blocking`.
        return "cpu" in devices and not (kwargs.get("non_blocking") or args[-1] is True)
    if operation in _INDEXES:
        return any(
            index.dtype in (torch.bool, torch.uint8) or index.device.type == "cpu"
            for index in _tensors(args[1])
        )
    if operation is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return operation in _READS


def _place() -> str:
    """The innermost function on the stack that is of this library, of normflows or nflows."""
    frame = sys._getframe(1)
    while frame is not None:
        root, _, module = frame.f_globals.get("__name__", "").partition(".")
        if root in ("normflows", "nflows"):
            return root
        function = frame.f_code.co_name
        if root == "mixer_bijectors" and not function.startswith("<"):
            return f"{module}.{function}"
        frame = frame.f_back
    return "outside"
