"""Puts `ParallelInverse` around the autoregressive layers of a model."""

import warnings
from typing import Any, TypeVar

from torch import nn

from .._checks import imported_class
from .._dependencies import child_modules
from .equations import find_sequential
from .parallel_inverse import ParallelInverse, ParallelLayer

__all__ = ["accelerate_sampling"]

_Module = TypeVar("_Module", bound=nn.Module)


def accelerate_sampling(model: _Module, **options: Any) -> _Module:
    """Wrap each autoregressive layer in a model of normflows or nflows in `ParallelInverse`.

    The model is changed in place; state_dicts from before and after load into either. Where
    the density direction is the sequential one, as in normflows' `MaskedAffineAutoregressive`,
    densities become fast, not samples. A subclass with a loop over features of its own is left
    as it is. A second call replaces the options. Warns if no layer can be wrapped.

    Args:
        model: a model, a layer or any module that holds some.
        **options: those of `ParallelInverse`.

    Returns:
        The model; if it is itself an autoregressive layer, that layer wrapped.

    Raises:
        TypeError: what is not a module.

    Example:
        >>> base = nf.distributions.DiagGaussian(8)
        >>> flows = [nf.flows.MaskedAffineAutoregressive(8, 16) for _ in range(3)]
        >>> model = accelerate_sampling(nf.NormalizingFlow(base, flows))
        >>> type(model.flows[0]).__name__
        'ParallelInverse'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"accelerate_sampling: expected a module, got {type(model).__name__}; pass the "
            "model or layer that holds the parameters"
        )
    layers: dict[nn.Module, nn.Module] = {}
    # A layer that is wrapped has the methods of its type.
    accelerated: Any = _accelerate(model, layers, options)
    if not layers:
        warnings.warn(
            f"accelerate_sampling: {type(model).__name__} holds no layer to wrap, which is one "
            "with a known loop over features (a subclass with a loop of its own is left as it "
            "is, and TransformerAutoregressive samples in parallel by itself)",
            stacklevel=2,
        )
    return accelerated


def _accelerate(
    module: nn.Module, layers: dict[nn.Module, nn.Module], options: dict[str, Any]
) -> nn.Module:
    """The module with its layers wrapped, or if it is such a layer, the wrapper of it.

    `layers` maps those found so far to their wrappers, as a layer may occur more than once.
    """
    layer = module.flow if isinstance(module, ParallelLayer) else module
    if layer in layers:
        return layers[layer]
    if find_sequential(layer) is not None:
        layers[layer] = _wrap(layer, options)
        return layers[layer]
    for name, child in child_modules(module).items():
        if child is None:
            continue
        accelerated = _accelerate(child, layers, options)
        if accelerated is not child:
            setattr(module, name, accelerated)
    return module


def _wrap(layer: nn.Module, options: dict[str, Any]) -> nn.Module:
    if not isinstance(layer, imported_class("nflows.transforms.base", "Transform")):
        return ParallelInverse(layer, **options)
    from .parallel_transform import ParallelTransform

    return ParallelTransform(layer, **options)
