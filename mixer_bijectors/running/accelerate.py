"""Makes splines and linear layers of normflows and nflows faster, in place."""

import warnings
from typing import TypeVar

from torch import nn

from .exchange import exchange, give_back

__all__ = ["accelerate", "restore"]

_Module = TypeVar("_Module", bound=nn.Module)


def accelerate(model: _Module, *, compile: bool = False) -> _Module:
    """Run splines and linear layers of normflows and nflows by faster code, in place.

    The numbers stay, but for rounding, in both directions, and so do gradients, parameters and
    keys of the state_dict:

    - Rational-quadratic splines of couplings, autoregressive layers and tables
      (`PiecewiseRationalQuadraticCDF`), with all tails, run by the kernel of
      `RationalQuadratic`, with the widths, heights and slopes of their own parametrisation.
      Without tails, an input outside of [0, 1] raises where it can be seen without waiting for
      a GPU, and becomes NaN elsewhere. Half precision is computed in single precision.
    - `LULinear` and `LULinearPermute` build both triangular matrices in one look-up.
    - `ActNorm` looks at its flag until the first batch has come, and no more.

    These layers become graphs without breaks, and stall no GPU. With `compile`, each method of
    a model is compiled when it is first called: of `normflows.NormalizingFlow`,
    `ConditionalNormalizingFlow` and `MultiscaleFlow`, of nflows' `Flow`, also in an estimator
    of sbi, and of a `CompositeTransform` that is in none. That takes a minute or two for each
    method, with and without gradients, and pays for long training. A direction
    that goes from feature to feature, as sampling from autoregressive layers does, is not
    compiled: `accelerate_sampling` is for that. Nor is the first batch of `ActNorm`, nor what
    runs under `torch.func`. Where compiling fails, the model warns once and runs without.

    A layer is left alone if a method was replaced in a subclass or on the instance, or if its
    settings are not known. Call `restore` to undo it. A model can be copied, pickled, trained
    by data-parallel replicas, and given to `accelerate_sampling`, before or after.

    Args:
        model: a model, a layer or any module that holds some.
        compile: compile the models that are found. Derivatives of second order need False.

    Returns:
        The model. Warns if there was nothing to do.

    Raises:
        TypeError: what is not a module.

    Example:
        >>> flows = [nf.flows.CoupledRationalQuadraticSpline(4, 1, 16) for _ in range(3)]
        >>> model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), flows)
        >>> x = torch.randn(10, 4)
        >>> before = model.log_prob(x)
        >>> torch.allclose(accelerate(model).log_prob(x), before, atol=1e-5)
        True
        >>> torch.equal(restore(model).log_prob(x), before)
        True
    """
    _check("accelerate", model)
    # These import nflows, which models of normflows do without.
    from . import faster_linear, faster_splines
    from .compiled import compile_models

    layers = (*faster_splines.LAYERS, *faster_linear.LAYERS)
    found = sum(exchange(module, faster) for module in model.modules() for faster in layers)
    faster_linear.look_at_flags(model)
    if compile:
        found += compile_models(model)
    if not found:
        warnings.warn(
            f"accelerate: {type(model).__name__} holds no layer that can be made faster: no "
            "spline, LULinear or ActNorm of normflows or nflows with methods of their own",
            stacklevel=2,
        )
    return model


def restore(model: _Module) -> _Module:
    """Undo `accelerate`: the model runs the code of its own libraries again.

    Args:
        model: what `accelerate` was given, or what holds it.

    Returns:
        The model, with the parameters that it has now.

    Raises:
        TypeError: what is not a module.

    Example:
        >>> layer = accelerate(nf.flows.LULinearPermute(4))
        >>> restore(layer) is layer
        True
    """
    _check("restore", model)
    for module in model.modules():
        give_back(module)
    return model


def _check(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: expected a module, got {type(model).__name__}; pass the model or "
            "layer that holds the parameters"
        )
