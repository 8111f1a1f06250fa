"""Trained models that are compiled ahead of time, to run without this library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..._dependencies import compile_package, finds_cpp_compiler
from ...layers.transformer_autoregressive import TransformerAutoregressive
from ...models.bare_flow import BareFlow
from ...running.compiled import has_loop
from ..io.errors import RunError
from ..io.names import first_line

__all__ = ["Method", "check_compiler", "exported", "write_package"]

Method = Literal["log_prob", "forward_and_log_det"]


def check_compiler() -> None:
    """Raise a RunError if there is no C++ compiler, before a model is read and traced."""
    if not finds_cpp_compiler():
        raise RunError(
            "export: no C++ compiler is found, which --format aoti needs; install g++ or "
            "clang++, or name one in the environment variable CXX"
        )


def write_package(path: Path, model: Any, method: Method, about: dict[str, str]) -> None:
    """Write a package of AOTInductor that computes a method of a model.

    Args:
        path: the file, with the suffix .pt2.
        model: a model of images.
        method: `log_prob` of images, or `forward_and_log_det` of latents.
        about: text by name, for the metadata of the package.

    Raises:
        RunError: the method has no graph, or the compiler fails.
    """
    program = exported(model, method)
    try:
        compile_package(program, path, about)
    except OSError:
        raise
    except Exception as error:  # compilers fail in many ways
        reason = first_line(error)
        raise RunError(f"export: the compiler failed on {method}: {reason}") from error


def exported(model: Any, method: Method) -> torch.export.ExportedProgram:
    """A method of a model as a graph for batches of any size from 1.

    Its inputs are images or latents, and labels (batch,) of a class-conditional model.

    Raises:
        RunError: the model does not say the shape of its input, or the method has no graph.
    """
    name = type(model).__name__
    event = getattr(model, "image_shape" if method == "log_prob" else "latent_shape", None)
    if event is None:
        raise RunError(f"export: a {name} does not say the shape of the input of {method}")
    if method != "log_prob" and _goes_step_by_step(model):
        raise RunError(
            f"export: {method} of this {name} goes from patch to patch or from feature to "
            "feature, and is no single graph; export log_prob, and sample with "
            "mixer-bijectors sample"
        )
    module = model.flow if isinstance(model, BareFlow) else model
    like = next(module.parameters())
    inputs = [torch.zeros(2, *event, dtype=like.dtype, device=like.device)]
    if model.num_classes:
        inputs.append(torch.zeros(2, dtype=torch.int64, device=like.device))
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in inputs),)
    run = _Method(module, getattr(model, method))
    try:
        with torch.no_grad():
            return torch.export.export(run, tuple(inputs), dynamic_shapes=shapes)
    except Exception as error:  # tracing fails in many ways
        reason = first_line(error)
        raise RunError(f"export: {method} of this {name} has no graph: {reason}") from error


def _goes_step_by_step(model: nn.Module) -> bool:
    """Whether images are made in a loop, whose graph would be as long as all of its passes."""
    layers = (isinstance(layer, TransformerAutoregressive) for layer in model.modules())
    return any(layers) or has_loop(model, "forward")


class _Method(nn.Module):
    """A method of a model as the `forward` of a module, which is what torch exports."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Tensor) -> Any:
        return self.method(*inputs)
