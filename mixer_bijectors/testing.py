"""A check of layers that users write, as gradcheck is one of gradients."""

import copy
import warnings
from numbers import Real

import normflows as nf
import torch
from torch import Tensor, nn

from ._dependencies import uncompiled
from ._derivatives import (
    Run,
    check_close,
    check_derivatives,
    check_gradients,
    derivatives,
    position,
)
from .declarations import check_takes_context
from .flow import call_flow

__all__ = ["check_bijection"]


def check_bijection(
    flow: nn.Module,
    x: Tensor,
    context: Tensor | None = None,
    *,
    z: Tensor | None = None,
    atol: float = 1e-8,
    rtol: float = 1e-6,
) -> None:
    r"""Raise unless `flow` is a bijection and its log-determinants are correct.

    Checked in this order, on copies of the flow in evaluation mode: in the dtype of `x`, the
    shapes, dtypes and devices of the results; then in float64, that values are finite and the
    same when computed again, that neither input, context nor an earlier result is overwritten,
    that a sample's result does not depend on its neighbours in the batch, that `forward` and
    `inverse` undo each other both ways (each on a copy of its own, which remembers nothing of
    the other), values and log-determinants alike, that each log-determinant equals the
    log-absolute-determinant of the autograd Jacobian, and that this Jacobian, the gradient of
    the log-determinant and the gradients of parameters are those of finite differences. The
    Jacobian takes one backward pass for each dimension, so keep events small (up to some
    hundred).

    A log-determinant that is one number counts for every sample, as elsewhere in this library.

    Args:
        flow: the flow to check, any `normflows.flows.Flow`.
        x: data of shape (batch, \*event), at least two samples that differ.
        context: context of shape (batch, context_features), if the flow takes one.
        z: latents to start the way back from; by default standard normal noise.
        atol: absolute tolerance of the comparisons in float64.
        rtol: relative tolerance of the comparisons in float64. A layer with an adaptive solver,
            such as `ContinuousFlow`, wants larger ones, `atol=1e-4` and `rtol=1e-3`.

    Raises:
        AssertionError: a property fails; the message says which, where and by how much.
        TypeError: a model in place of a flow, or what has no `inverse`, or declares a context
            and has no argument for it.
        ValueError: `x` that is not floating point or not finite, or whose samples are all the
            same; a context for another batch.

    Example:
        >>> check_bijection(mb.Coupling(5), torch.randn(3, 5))
        >>> class Doubled(nf.flows.Flow):
        ...     def forward(self, z):
        ...         return 2 * z, torch.zeros(len(z))
        ...
        ...     def inverse(self, x):
        ...         return x / 2, torch.zeros(len(x))
        >>> check_bijection(Doubled(), torch.randn(3, 5))
        Traceback (most recent call last):
            ...
        AssertionError: Doubled.inverse: log_det differs from the autograd Jacobian's ...
    """
    _check_arguments(flow, x, context)
    # Gradients need ordinary tensors. An untrained ActNorm is as good a bijection as any.
    with torch.inference_mode(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ActNorm: used in evaluation mode")
        context, z = _clone(context), _clone(z)
        _check(copy.deepcopy(flow).eval(), x.clone(), context, z, atol, rtol)


def _check(
    flow: nn.Module,
    x: Tensor,
    context: Tensor | None,
    z: Tensor | None,
    atol: float,
    rtol: float,
) -> None:
    name = type(flow).__name__
    with torch.no_grad():
        # Layers of normflows set themselves by their first batch, which is this one for all.
        latents, one_for_all = _check_outputs(name, "inverse", flow, x, context)
        _, one_back = _check_outputs(name, "forward", flow, latents, context)

    def to_double(t: Tensor | None) -> Tensor | None:
        return t.double() if t is not None and t.is_floating_point() else t

    flow, x, context, z = flow.double(), x.double(), to_double(context), to_double(z)
    if z is None:
        generator = torch.Generator("cpu").manual_seed(0)
        z = torch.randn(latents.shape, dtype=torch.float64, generator=generator, device="cpu")
        z = z.to(x.device)

    for inverse, start, is_one in ((True, x, one_for_all), (False, z, one_back)):
        here, back = ("inverse", "forward") if inverse else ("forward", "inverse")
        where = f"{name}.{here}"
        there, way_back = (Run(copy.deepcopy(flow), context, way) for way in (here, back))
        with torch.no_grad():
            end, log_det = _check_calls(there, start, is_one, atol, rtol)
            returned, log_det_back = way_back(end)
        what = f"{name}.{back} does not undo {where}"
        check_close(f"{what}: values differ", returned, start, atol, rtol)
        check_close(
            f"{what}: log_det of one is not minus that of the other",
            log_det_back,
            -log_det,
            atol,
            rtol,
        )
        jacobian, slope = derivatives(there, start)
        check_close(
            f"{where}: log_det differs from the autograd Jacobian's",
            log_det,
            torch.linalg.slogdet(jacobian).logabsdet,
            atol,
            rtol,
        )
        check_derivatives(there, start, jacobian, slope)
        check_gradients(there, start)


def _check_calls(
    run: Run, start: Tensor, one_for_all: bool, atol: float, rtol: float
) -> tuple[Tensor, Tensor]:
    """The results, which must depend on the inputs alone, and sample by sample."""
    given = start.clone()
    first = run.bare(given)
    end, log_det = (result.clone() for result in first)
    _check_finite(run.where, "result", end)
    _check_finite(run.where, "log_det", log_det)
    if not torch.equal(given, start):
        raise AssertionError(f"{run.where}: changes its input in place")
    run(-start.flip(0))
    if not all(map(torch.equal, first, (end, log_det))):
        raise AssertionError(f"{run.where}: its result is overwritten by the next call")
    if not all(map(torch.equal, run(start), (end, log_det))):
        raise AssertionError(
            f"{run.where}: gives another result when it is called again; only a deterministic "
            "flow can be checked"
        )
    for i in range(start.shape[0]):
        one = slice(i, i + 1)
        alone, log_det_alone = run(start, one)
        depends = f"of sample {i} depends on its neighbours in the batch"
        check_close(f"{run.where}: result {depends}", end[one], alone, atol, rtol)
        what = f"log_det {depends}"
        if one_for_all:
            what = f"log_det is one number for all samples, but differs for sample {i} alone"
        check_close(f"{run.where}: {what}", log_det[one], log_det_alone, atol, rtol)
    return end, log_det


def _check_arguments(flow: nn.Module, x: Tensor, context: Tensor | None) -> None:
    flow = uncompiled(flow)
    name = type(flow).__name__
    if isinstance(flow, nf.NormalizingFlow):
        raise TypeError(
            f"check_bijection: {name} is a model, whose forward returns no log_det; check its "
            "layers with check_bijection(mb.Chain(model.flows), x)"
        )
    if not callable(getattr(flow, "inverse", None)):
        raise TypeError(
            f"check_bijection: {name} has no inverse, so it is no flow; give it the methods "
            "forward and inverse, which return a tensor and its log_det"
        )
    check_takes_context("check_bijection", flow)
    if not (isinstance(x, Tensor) and x.is_floating_point() and bool(x.isfinite().all())):
        raise ValueError("check_bijection: x must be a floating point tensor of finite values")
    if len(x) < 2:
        raise ValueError(
            f"check_bijection: x must hold at least 2 samples to compare, got {len(x)}"
        )
    if bool((x == x[:1]).all()):
        raise ValueError(
            "check_bijection: the samples of x are all the same, which cannot tell whether one "
            "depends on another; pass samples that differ"
        )
    if context is not None and context.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"check_bijection: expected a context of shape ({len(x)}, context_features), got "
            f"{tuple(context.shape)}"
        )


def _check_outputs(
    name: str, method: str, flow: nn.Module, x: Tensor, context: Tensor | None
) -> tuple[Tensor, bool]:
    """The result, and whether its log_det is one number for all samples."""
    where = f"{name}.{method}"
    result = call_flow(flow, x.clone(), _clone(context), inverse=method == "inverse")
    if not (
        isinstance(result, tuple | list)
        and len(result) == 2
        and isinstance(result[0], Tensor)
        and isinstance(result[1], Tensor | Real)
    ):
        raise AssertionError(
            f"{where}: returned {type(result).__name__}, expected a pair: a tensor and its "
            "log_det"
        )
    y, log_det = result
    if y.shape[:1] != x.shape[:1] or y.numel() != x.numel():
        raise AssertionError(
            f"{where}: shape {tuple(x.shape)} became {tuple(y.shape)}, which has another batch "
            "size or number of dimensions, so it is no bijection"
        )
    if not isinstance(log_det, Tensor):
        log_det = x.new_tensor(log_det)  # a number stands for all samples, as in normflows
    if log_det.shape not in ((), (1,), (len(x),)):
        raise AssertionError(
            f"{where}: log_det has shape {tuple(log_det.shape)}, expected ({len(x)},)"
        )
    for what, tensor in (("result", y), ("log_det", log_det)):
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise AssertionError(
                f"{where}: {what} is {tensor.dtype} on {tensor.device}, "
                f"the input {x.dtype} on {x.device}"
            )
    return y.clone(), log_det.shape != (len(x),)


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _check_finite(where: str, what: str, value: Tensor) -> None:
    wrong = (~value.isfinite()).flatten().nonzero()
    if len(wrong):
        first = position(int(wrong[0]), value)
        raise AssertionError(
            f"{where}: {what} is not finite in {len(wrong)} of {value.numel()} values, "
            f"first at index {first}"
        )
