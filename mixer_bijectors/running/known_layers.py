"""The layers of normflows and nflows whose code is known to the solvers, by name.

The solvers replace a loop, or run a net in pieces. That is right only for the code that they
were written for, so each function is compared with the one of that name in its own module: a
method of a subclass, or one that was replaced since, is another function. As only names are
compared, nothing of nflows is imported here.
"""

from typing import Any

from torch import nn

from .._checks import replaces_methods
from .._dependencies import constant_in_graphs

__all__ = [
    "MADES",
    "MASKED_LINEARS",
    "NET_PARTS",
    "STEPPED_LAYERS",
    "full_name",
    "is_unchanged",
    "loops_over_features",
    "runs_methods_of",
]

_MADE_MODULES = ("normflows.nets.made", "nflows.transforms.made")
MADES = {f"{module}.MADE" for module in _MADE_MODULES}
MASKED_LINEARS = {f"{module}.MaskedLinear" for module in _MADE_MODULES}
NET_PARTS = {
    *MADES,
    *MASKED_LINEARS,
    *(f"{module}.MaskedFeedforwardBlock" for module in _MADE_MODULES),
    *(f"{module}.MaskedResidualBlock" for module in _MADE_MODULES),
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.linear.Linear",
}

# Layers that map a feature, given its parameters, without a look at the others.
STEPPED_LAYERS = {
    "mixer_bijectors.layers.autoregressive.Autoregressive": "_params",
    **dict.fromkeys(
        (
            "normflows.flows.affine.autoregressive.MaskedAffineAutoregressive",
            "normflows.flows.neural_spline.autoregressive."
            "MaskedPiecewiseRationalQuadraticAutoregressive",
            *(
                f"nflows.transforms.autoregressive.Masked{kind}AutoregressiveTransform"
                for kind in (
                    "Affine",
                    "PiecewiseLinear",
                    "PiecewiseQuadratic",
                    "PiecewiseCubic",
                    "PiecewiseRationalQuadratic",
                )
            ),
        ),
        "_elementwise_inverse",
    ),
}

_LOOPS = {
    "normflows.flows.affine.autoregressive.Autoregressive.inverse",
    "nflows.transforms.autoregressive.AutoregressiveTransform.inverse",
}


def loops_over_features(layer: nn.Module) -> bool:
    """Whether `inverse` of a layer is the loop over features of normflows or of nflows."""
    return "inverse" not in layer.__dict__ and _has_known_loop(type(layer))


@constant_in_graphs
def _has_known_loop(layer_type: type) -> bool:
    return _definition(getattr(layer_type, "inverse", None)) in _LOOPS


def full_name(kind: type) -> str:
    """The name of a class with that of its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_unchanged(kind: type, method: str) -> bool:
    """Whether a method is the one that the class, or one that it inherits from, defines."""
    definition = _definition(getattr(kind, method, None))
    return any(definition == f"{full_name(base)}.{method}" for base in kind.__mro__)


def runs_methods_of(module: nn.Module, kind: type) -> bool:
    """Whether a module runs in both directions by the methods of `kind`, which it is one of."""
    names = ("forward", "inverse", "transform")
    return not replaces_methods(module) and all(
        getattr(type(module), name, None) is getattr(kind, name, None)
        and (not hasattr(kind, name) or is_unchanged(kind, name))
        for name in names
    )


def _definition(function: Any) -> str | None:
    """Name of a function in the module that it is written in.

    A wrapper may copy the name of what it wraps, but not its global variables.
    """
    scope = getattr(function, "__globals__", None)
    return f"{scope.get('__name__')}.{function.__qualname__}" if scope else None
