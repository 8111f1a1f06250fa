"""A check for layers that users write: what gradcheck is to autograd."""

import copy

import torch
from torch import Tensor, nn

from .flow import apply_flow, call_flow

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
    r"""Raise unless `flow` is a bijection with the log-determinants that it says.

    Checked in this order, on a copy of the flow in evaluation mode: in the dtype of `x`, the
    shapes, dtypes and devices of what comes out; then in float64, that values are finite and
    the same when computed again, that a sample's result does not depend on its neighbours in
    the batch, that `forward` and `inverse` undo each other both ways, values and
    log-determinants alike, and that each log-determinant equals the log-absolute-determinant
    of the autograd Jacobian. The Jacobian takes one backward pass for each dimension, so keep
    events small (up to some hundred).

    Args:
        flow: the flow to check, any `normflows.flows.Flow`.
        x: data of shape (batch, \*event), at least two samples that differ.
        context: context of shape (batch, context_features), if the flow takes one.
        z: latents to start the way back from; by default standard normal noise.
        atol: absolute tolerance of the comparisons in float64.
        rtol: relative tolerance of the comparisons in float64.

    Raises:
        AssertionError: a property fails; the message says which, where and by how much.

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
    flow = copy.deepcopy(flow).eval()
    name = type(flow).__name__
    if len(x) < 2:
        raise ValueError(
            f"check_bijection: x must hold at least 2 samples to compare, got {len(x)}"
        )

    with torch.no_grad():
        latents = _check_outputs(name, "inverse", flow, x, context)
        _check_outputs(name, "forward", flow, latents, context)

    def to_double(t: Tensor | None) -> Tensor | None:
        return t.double() if t is not None and t.is_floating_point() else t

    flow, x, context, z = flow.double(), x.double(), to_double(context), to_double(z)
    if z is None:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(latents.shape, dtype=torch.float64, generator=generator).to(x.device)

    for inverse, start in ((True, x), (False, z)):
        here, back = ("inverse", "forward") if inverse else ("forward", "inverse")
        with torch.no_grad():
            end, log_det = apply_flow(flow, start, context, inverse=inverse)
            _check_finite(f"{name}.{here}", "result", end)
            _check_finite(f"{name}.{here}", "log_det", log_det)
            again = apply_flow(flow, start, context, inverse=inverse)
            if not (torch.equal(end, again[0]) and torch.equal(log_det, again[1])):
                raise AssertionError(
                    f"{name}.{here}: gives another result when it is called again; only a "
                    "deterministic flow can be checked"
                )
            for i in range(len(start)):
                one = slice(i, i + 1)
                alone, log_det_alone = apply_flow(
                    flow, start[one], None if context is None else context[one], inverse=inverse
                )
                what = (
                    f"{name}.{here}: {{}} of sample {i} depends on its neighbours in the batch"
                )
                _check_close(what.format("result"), end[one], alone, atol, rtol)
                _check_close(what.format("log_det"), log_det[one], log_det_alone, atol, rtol)
            returned, log_det_back = apply_flow(flow, end, context, inverse=not inverse)
        what = f"{name}.{back} does not undo {name}.{here}"
        _check_close(f"{what}: values differ", returned, start, atol, rtol)
        _check_close(
            f"{what}: log_det of one is not minus that of the other",
            log_det_back,
            -log_det,
            atol,
            rtol,
        )
        jacobian = _jacobian(f"{name}.{here}", flow, start, context, inverse)
        _check_close(
            f"{name}.{here}: log_det differs from the autograd Jacobian's",
            log_det,
            torch.linalg.slogdet(jacobian).logabsdet,
            atol,
            rtol,
        )


def _check_outputs(
    name: str, method: str, flow: nn.Module, x: Tensor, context: Tensor | None
) -> Tensor:
    y, log_det = call_flow(flow, x, context, inverse=method == "inverse")
    where = f"{name}.{method}"
    if len(y) != len(x) or y[0].numel() != x[0].numel():
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
    return y


def _check_finite(where: str, what: str, value: Tensor) -> None:
    wrong = (~value.isfinite()).flatten().nonzero()
    if len(wrong):
        first = _position(int(wrong[0]), value)
        raise AssertionError(
            f"{where}: {what} is not finite in {len(wrong)} of {value.numel()} values, "
            f"first at index {first}"
        )


def _check_close(what: str, got: Tensor, want: Tensor, atol: float, rtol: float) -> None:
    error = (got - want).abs()
    excess = error - (atol + rtol * want.abs())
    if not bool((excess <= 0).all()):
        worst = int(excess.nan_to_num(torch.inf).argmax())
        raise AssertionError(
            f"{what} by up to {error.flatten()[worst].item():.3g}, at index "
            f"{_position(worst, error)}: {got.flatten()[worst].item():.6g} against "
            f"{want.flatten()[worst].item():.6g}"
        )


def _position(flat: int, tensor: Tensor) -> tuple[int, ...]:
    index = torch.unravel_index(torch.tensor(flat), tensor.shape)
    return tuple(int(i) for i in index)


def _jacobian(
    where: str, flow: nn.Module, x: Tensor, context: Tensor | None, inverse: bool
) -> Tensor:
    """(batch, dims, dims), all samples at once: samples are known to be independent by now."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y, _ = apply_flow(flow, x, context, inverse=inverse)
        if not y.requires_grad:
            raise AssertionError(
                f"{where}: autograd does not see through it, so that its log_det cannot be "
                "compared with the Jacobian's"
            )
        outputs = y.flatten(1).sum(0)
        rows = [
            torch.autograd.grad(output, x, retain_graph=True)[0].flatten(1)
            for output in outputs
        ]
    return torch.stack(rows, dim=1)
