"""Every use of names that torch, normflows and nflows do not promise to keep.

An upgrade of them may remove these names; `tests/test_dependencies.py` then fails.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.distributions.transforms import _InverseTransform as InverseTransform
from torch.nn.modules import module as hooks_of_all

__all__ = [
    "InverseTransform",
    "all_modules",
    "all_parameters",
    "all_tensors",
    "child_modules",
    "compile_package",
    "constant_in_graphs",
    "elementwise_inverse",
    "finds_cpp_compiler",
    "flows_of_composite",
    "has_hooks",
    "hook_tables",
    "in_dispatch_mode",
    "is_compiled",
    "is_empty",
    "is_function_transformed",
    "matrix_of_convolution",
    "module_versions",
    "run_uncompiled",
    "uncompiled",
    "with_children",
    "with_forward_mode",
    "without_tensor_hooks",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_in_graphs(function: _Function) -> _Function:
    """Have `torch.compile` call a function once, and take its result for a constant.

    It sets the mark that `torch.compiler.assume_constant_result` sets, which would import the
    compiler to do so, and that takes longer than all other imports together.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def uncompiled(module: Any) -> Any:
    """The module that `torch.compile` was called with; any other module is returned."""
    return getattr(module, "_orig_mod", module)


def finds_cpp_compiler() -> bool:
    """Whether `torch.compile` and AOTInductor find a C++ compiler on this machine."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


def compile_package(
    program: torch.export.ExportedProgram, path: Path, about: dict[str, str]
) -> None:
    """Compile an exported program to a package of AOTInductor, with text as its metadata."""
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(
        program, package_path=str(path), inductor_configs={"aot_inductor.metadata": about}
    )


def is_function_transformed(x: Tensor) -> bool:
    """Whether a tensor is wrapped by a transformation of torch.func, such as vmap."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x)


def in_dispatch_mode() -> bool:
    """Whether a mode, such as that of fake tensors, changes the results of all operations."""
    return torch._C._len_torch_dispatch_stack() != 0


def with_forward_mode() -> AbstractContextManager[Any]:
    """A context in which forward-mode derivatives are computed, also inside of `jvp`."""
    return forward_ad._set_fwd_grad_enabled(True)


def child_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The children by name: with None, and as often as they occur, unlike `named_children`.

    Of a module whose constructor has not run, none.
    """
    children: dict[str, nn.Module | None] = vars(module).get("_modules", {})
    return children


def all_modules(module: nn.Module) -> list[nn.Module]:
    """The list of `module.modules()`, in a fraction of the time."""
    found: dict[nn.Module, None] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = None
            children = reversed(child_modules(one).values())
            waiting += [child for child in children if child is not None]
    return list(found)


def all_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The list of `module.parameters()`, in a fraction of the time."""
    tables = [one._parameters for one in all_modules(module)]
    return [*dict.fromkeys(p for table in tables for p in table.values() if p is not None)]


def all_tensors(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module and of all that are in it."""
    tables = [t for one in all_modules(module) for t in (one._parameters, one._buffers)]
    return [tensor for table in tables for tensor in table.values() if tensor is not None]


def with_children(module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
    """A copy of a module with other children; parameters and all else are shared."""
    copied = copy.copy(module)
    copied._modules = children
    return copied


def is_empty(module: nn.Module) -> bool:
    """Whether a module declares no parameter, buffer or child, not even one that is None."""
    return not any((module._parameters, module._buffers, module._modules))


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before or after a module, or all modules, when it is called."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or hooks_of_all._global_forward_pre_hooks
        or hooks_of_all._global_forward_hooks
        or hooks_of_all._global_backward_pre_hooks
        or hooks_of_all._global_backward_hooks
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether a module has been compiled in place, so that calls of it run compiled code."""
    return module._compiled_call_impl is not None


def run_uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have `torch.compile` call a function as it is, in between two graphs.

    This is `torch.compiler.disable`, but imports the compiler when the function is called.
    """
    return _disable_dynamo(function)


@contextmanager
def without_tensor_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """A context manager in which `torch.autograd.grad` runs no hooks of these tensors.

    A gradient that an outer backward pass hands on meets the hooks there.
    """
    tables = [t._backward_hooks for t in tensors if t._backward_hooks]
    saved = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, saved):
            table.update(hooks)


def hook_tables(module: nn.Module) -> Iterator[OrderedDict[int, Any]]:
    """The dictionaries in which a module keeps its hooks of all kinds."""
    for name, value in vars(module).items():
        if "hooks" in name and isinstance(value, OrderedDict):
            yield value


def module_versions(state: dict[str, Any]) -> dict[str, Any]:
    """The versions of the modules that a state_dict was taken of, by their names."""
    versions: dict[str, Any] = getattr(state, "_metadata", {})
    return versions


def flows_of_composite(composite: Any) -> list[nn.Module]:
    """The flows that `normflows.flows.Composite` is made of."""
    return list(composite._flows)


def matrix_of_convolution(layer: Any, *, inverse: bool) -> Tensor:
    """The matrix of `normflows.flows.Invertible1x1Conv(use_lu=True)`, or its inverse."""
    matrix: Tensor = layer._assemble_W(inverse)
    return matrix


def elementwise_inverse(layer: Any, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """The map of each feature, given its parameters, in an autoregressive layer."""
    x, log_det = layer._elementwise_inverse(y, params)
    return x, log_det
