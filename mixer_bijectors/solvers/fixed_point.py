"""Fixed points of triangular maps: each entry depends only on the entries before it."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import is_concrete

__all__ = ["Step", "solve", "solve_in_fixed_passes", "with_implicit_gradients"]

# Takes values of shape (rows, features, ...) and the numbers of their rows in the batch;
# returns the values that they are mapped to, and more results with one entry for each row.
Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def solve(
    step: Step,
    start: Tensor,
    order: Tensor | None,
    tol: float,
    max_iter: int | None = None,
    solve_rows: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
) -> tuple[tuple[Tensor, ...], int]:
    """The fixed point x = step(x), by iteration from `start`, and the number of passes.

    Entry `order[i]` of a step reads only entries `order[:i]`, so that i passes settle the first
    i entries, for all values of the others. A row has converged when no entry changes by more
    than `tol` times its size, or times 1 if it is smaller. Rows with values that are not finite
    on the way, and those left over after `max_iter` passes, are solved entry by entry: by
    `solve_rows`, from their numbers in the batch, or else with a step for each entry. Where the
    order is not known, they take as many steps as there are entries, which is exact in any
    order.

    Returns what the last pass of each row returned. Each pass ends with one host
    synchronisation.
    """
    features = start.shape[1]
    limit = features if max_iter is None else min(max_iter, features)
    rows = torch.arange(start.shape[0], device=start.device)
    x = start
    results: tuple[Tensor, ...] = (start,)
    left_over: list[Tensor] = []
    passes = 0
    while rows.shape[0] and passes < limit:
        passes += 1
        new, *rest = step(x, rows)
        results = _write(results, rows, (new, *rest))
        broken = ~new.isfinite().flatten(1).all(1)
        change = ((new - x).abs() / new.abs().clamp(min=1)).flatten(1).amax(1)
        going = ~(broken | (change <= tol))
        num_broken, num_going = torch.stack((broken.sum(), going.sum())).tolist()
        if num_broken:
            left_over.append(rows[broken])
        # A few rows that have converged cost less than leaving them out.
        if num_broken or 8 * num_going <= 7 * rows.shape[0] or passes == limit:
            rows, x = rows[going], new[going]
        else:
            x = new
    if limit < features:
        left_over.append(rows)
    if left_over:
        # Sorted: as many rows as the batch has are the batch.
        rows = torch.cat(left_over).sort().values
        if rows.shape[0]:
            if solve_rows is not None:
                found = solve_rows(rows)
            elif order is not None:
                found = _solve_in_order(step, start[rows], rows, order)
            else:
                found = _repeat(step, start[rows], rows)
            results = _write(results, rows, found)
    return results, passes


def solve_in_fixed_passes(step: Step, start: Tensor) -> tuple[Tensor, ...]:
    """The fixed point x = step(x), by as many passes as there are entries.

    That is exact for all values, in any order of the entries, and reads no value on the host.
    """
    return _repeat(step, start, torch.arange(start.shape[0], device=start.device))


def with_implicit_gradients(
    step: Step, x: Tensor, log_det: Tensor, order: Tensor | None, tol: float
) -> tuple[Tensor, Tensor]:
    """The solution and its log_det, with gradients by the implicit function theorem.

    From x = f(x, theta) follows dx = (1 - f_x)^-1 f_theta dtheta. So the gradient v of x is
    multiplied by the transpose of that inverse, which is another fixed point,
    u = v + f_x^T u, in which each entry reads only those after it.

    One step shows whether gradients are needed: the parameters alone do not, as replicas of
    `DataParallel` have none.
    """
    events = tuple(range(1, x.dim()))
    rows = torch.arange(x.shape[0], device=x.device)
    new, new_log_det = step(x, rows)
    if not (new.requires_grad or new_log_det.requires_grad):
        return x, log_det
    at = x.detach().requires_grad_()
    again, _ = step(at, rows)

    def solve_adjoint(v: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "second derivatives through a direction that is solved by iteration are not "
                "available; take them through the layer itself"
            )

        # The tolerance is absolute below 1, so gradients are scaled to a size of 1.
        size = v.abs().amax(events, keepdim=True)
        v = v / size.where(size > 0, 1.0)

        def adjoint_step(u: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
            full = u if u.shape == v.shape else torch.zeros_like(v).index_copy(0, rows, u)
            (product,) = torch.autograd.grad(
                again, at, full, retain_graph=True, materialize_grads=True
            )
            new = v + product
            return (new if u.shape == v.shape else new[rows],)

        if is_concrete(v):
            (u,), _ = solve(adjoint_step, v, None if order is None else order.flip(0), tol)
        else:
            (u,) = solve_in_fixed_passes(adjoint_step, v)
        return u * size

    # Through a net, values that are not finite would reach the features before them.
    finite = x.isfinite().all(events, keepdim=True)
    x = torch.where(finite, new, x)
    if again.requires_grad:
        x.register_hook(solve_adjoint)
    log_det = step(x, rows)[1]
    # Another tensor, whose own gradient is what reaches it.
    return x.view_as(x), log_det


def _repeat(step: Step, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    results: tuple[Tensor, ...] = (x,)
    for _ in range(x.shape[1]):
        results = step(results[0], rows)
    return results


def _solve_in_order(step: Step, x: Tensor, rows: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """The fixed point, one entry after the other; entries not yet solved are zero."""
    x = torch.zeros_like(x)
    for entry in order.split(1):
        new, *_ = step(x, rows)
        x = x.index_copy(1, entry, new.index_select(1, entry))
    _, *rest = step(x, rows)
    return x, *rest


def _write(
    results: tuple[Tensor, ...], rows: Tensor, new: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The results with some rows replaced; the first call replaces all rows."""
    if rows.shape[0] == results[0].shape[0]:
        return new
    return tuple(old.index_copy(0, rows, value) for old, value in zip(results, new))
