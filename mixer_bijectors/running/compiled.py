"""Models of normflows and nflows whose passes are compiled when they are first run."""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import normflows as nf
import torch
from nflows.flows.base import Flow as NflowsFlow
from nflows.transforms.base import CompositeTransform, InverseTransform
from torch import Tensor, nn

from .._checks import is_concrete
from ..bridges.flow_as_transform import FlowAsTransform
from ..bridges.nflows import TransformAsFlow
from .equations import find_sequential
from .exchange import Faster, exchange
from .faster_linear import awaits_first_batch

__all__ = ["MODELS", "compile_models"]

# The compiled methods of each model, and None for one that the compiler has failed on. They are
# not attributes, which would be copied and pickled.
_METHODS: WeakKeyDictionary[nn.Module, dict[str, Callable[..., Any] | None]] = (
    WeakKeyDictionary()
)
# What runs a layer in its other direction.
_TURNS = (InverseTransform, nf.flows.Reverse, FlowAsTransform, TransformAsFlow)


class Compiled(Faster):
    """Methods of a model as one graph each, or as they are where there is no compiler.

    Attributes:
        directions: the direction that each method runs its layers in.
    """

    directions: ClassVar[dict[str, str]]

    def __init_subclass__(cls, own: tuple[type[nn.Module], ...] = (), **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if own:
            cls.known = {
                name: tuple(getattr(one, name) for one in own) for name in cls.directions
            }
            for name in cls.directions:
                setattr(cls, name, _method(name))

    def _run(self: Any, name: str, *arguments: Any, **keywords: Any) -> Any:
        function = getattr(type(self).__bases__[1], name)
        compiled = self._compiled(name, function, arguments, keywords)
        if compiled is None:
            return function(self, *arguments, **keywords)
        try:
            return compiled(self, *arguments, **keywords)
        except Exception as error:  # compilers fail in many ways
            # If the arguments are wrong, this says so in the words of the model.
            result = function(self, *arguments, **keywords)
            _METHODS[self][name] = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"accelerate: {type(self).__name__}.{name} runs without a compiler, as that "
                f"failed: {reason}",
                stacklevel=3,
            )
            return result

    def _compiled(
        self: Any, name: str, function: Any, arguments: Any, keywords: Any
    ) -> Callable[..., Any] | None:
        tensors = [t for t in (*arguments, *keywords.values()) if isinstance(t, Tensor)]
        if torch.compiler.is_compiling() or not all(map(is_concrete, tensors)):
            return None
        methods = _METHODS.setdefault(self, {})
        if name not in methods:
            if awaits_first_batch(self):
                return None
            loops = has_loop(self, self.directions[name])
            methods[name] = None if loops else _compile(function)
        return methods[name]


def _method(name: str) -> Any:
    def run(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._run(name, *arguments, **keywords)

    return run


class CompiledFlow(Compiled, own=(NflowsFlow,)):
    """`Flow` of nflows."""

    directions = {
        "_log_prob": "forward",
        "transform_to_noise": "forward",
        "_sample": "inverse",
        "sample_and_log_prob": "inverse",
    }


class CompiledTransform(Compiled, own=(CompositeTransform,)):
    """`CompositeTransform` of nflows, where no `Flow` holds it."""

    directions = {"forward": "forward", "inverse": "inverse"}


class CompiledNormalizingFlow(
    Compiled, own=(nf.NormalizingFlow, nf.ConditionalNormalizingFlow)
):
    """Models of normflows."""

    directions = {
        "forward": "forward",
        "forward_and_log_det": "forward",
        "sample": "forward",
        "inverse": "inverse",
        "inverse_and_log_det": "inverse",
        "log_prob": "inverse",
        "forward_kld": "inverse",
    }


class CompiledMultiscaleFlow(Compiled, own=(nf.MultiscaleFlow,)):
    """Models of several levels, such as Glow; their other methods call these."""

    directions = {
        "forward_and_log_det": "forward",
        "sample": "forward",
        "inverse_and_log_det": "inverse",
        "log_prob": "inverse",
    }


MODELS = (CompiledFlow, CompiledTransform, CompiledNormalizingFlow, CompiledMultiscaleFlow)


def compile_models(module: nn.Module) -> int:
    """Have each model in a module, the outermost ones, compile itself; returns how many."""
    if any(exchange(module, compiled) for compiled in MODELS):
        return 1
    return sum(map(compile_models, module.children()))


def has_loop(module: Any, direction: str) -> bool:
    """Whether a pass in one direction goes from feature to feature in some layer.

    Such a loop makes a graph for each feature, or one that is as long as all of them.
    """
    sequential = find_sequential(module)
    if sequential is not None:
        return sequential[0] == direction
    if isinstance(module, _TURNS):
        direction = "forward" if direction == "inverse" else "inverse"
    return any(has_loop(child, direction) for child in module.children())


def _compile(function: Any) -> Callable[..., Any]:
    # The compiler counts the graphs of a code object, which models would share otherwise.
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    try:
        # Random numbers are drawn as without a compiler.
        return torch.compile(own, options={"fallback_random": True})
    except RuntimeError as error:  # a version of Python that torch cannot compile for
        warnings.warn(f"accelerate: {error}", stacklevel=5)
        return function
