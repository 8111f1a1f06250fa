"""Extreme inputs and parameters: this library's univariate bijections and peers' splines.

Every trial draws parameters of some scale from 0.3 to 100 and 4096 inputs: normal ones of the
scale of the interval, its ends and their floating point neighbours, the knots of the spline,
subnormal numbers, zeros and 1e30. A trial fails where a direction raises, where a value, a
log-derivative or a gradient is not finite, or where x comes back from y, and y from x, with
larger errors than rounding explains. Peers get parameters of the same scales,
normal inputs, and the way back from these, in float32.

    python benchmarks/fuzz.py --trials 10000 --json fuzz.json
"""

import argparse
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from common import print_table, write_json
from torch import Tensor

import mixer_bijectors as mb
from mixer_bijectors.univariate import Univariate

POINTS = 4096
UNIVARIATES: dict[str, Univariate] = {
    "Additive": mb.Additive(),
    "Affine": mb.Affine(),
    "RationalQuadratic": mb.RationalQuadratic(),
    "RationalQuadratic, 32 bins": mb.RationalQuadratic(num_bins=32, bound=5.0),
    "RationalQuadratic, circular": mb.RationalQuadratic(circular=True),
    "MonotoneBSpline": mb.MonotoneBSpline(),
    "MonotoneBSpline, 32 cells": mb.MonotoneBSpline(grid_size=32, bound=5.0),
}
# Residual of x -> y -> x, or of y -> x -> y where that is smaller, relative to max(1, |x|).
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def draw_inputs(dtype: torch.dtype, bound: float, generator: torch.Generator) -> Tensor:
    """Normal inputs, with special ones at random places among them."""
    x = bound * torch.randn(POINTS, generator=generator, dtype=dtype)
    ends = torch.tensor([-bound, bound], dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    special = torch.cat(
        (
            ends,
            torch.nextafter(ends, torch.zeros_like(ends)),
            torch.nextafter(ends, 2 * ends),
            torch.linspace(-bound, bound, 33, dtype=dtype),
            torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 8, -tiny / 8, 1e30, -1e30]).to(dtype),
        )
    )
    x[torch.randperm(POINTS, generator=generator)[: len(special)]] = special
    return x


def knots_of(univariate: Univariate, params: Tensor, inverse: bool) -> Tensor | None:
    """The first inner knot of each spline, on the axis that the direction starts from."""
    if not isinstance(univariate, mb.RationalQuadratic):
        return None
    k, b = univariate.num_bins, univariate.bound
    logits = params[..., k : 2 * k] if inverse else params[..., :k]
    return 2 * b * (1e-3 + (1 - 1e-3 * k) * logits.softmax(-1)[..., 0]) - b


def trial(
    univariate: Univariate, dtype: torch.dtype, scale: float, generator: torch.Generator
) -> str | None:
    """The fault of a trial, if there is one."""
    bound = getattr(univariate, "bound", 3.0)
    params = scale * torch.randn(
        POINTS, univariate.num_params, generator=generator, dtype=dtype
    )
    params.requires_grad_()
    for inverse in (False, True):
        x = draw_inputs(dtype, bound, generator)
        knots = knots_of(univariate, params.detach(), inverse)
        if knots is not None:
            x[::16] = knots[::16]
        x.requires_grad_()
        y, log_derivative = univariate(x, params, inverse)
        gradients = torch.autograd.grad(y.sum() + log_derivative.sum(), (x, params))
        for name, t in zip(
            ("value", "log-derivative", "gradient of x", "gradient of parameters"),
            (y, log_derivative, *gradients),
        ):
            if not t.isfinite().all():
                return f"{name} not finite"
        with torch.no_grad():
            back, _ = univariate(y, params, not inverse)
            again, _ = univariate(back, params, inverse)
            error = torch.minimum(
                (back - x).abs() / x.abs().clamp(min=1),
                (again - y).abs() / y.abs().clamp(min=1),
            )
        if not error.max() < TOLERANCE[dtype]:
            return f"comes back wrong by {error.max().item():.1e}"
    return None


def run_trials(
    univariates: Iterable[str], trials: int, seed: int = 0
) -> dict[str, list[str | None]]:
    """Outcomes of `trials` trials, which take the univariates and precisions in turn."""
    generator = torch.Generator().manual_seed(seed)
    outcomes: dict[str, list[str | None]] = {name: [] for name in univariates}
    kinds = itertools.cycle(itertools.product(outcomes, (torch.float32, torch.float64)))
    for _, (name, dtype) in zip(range(trials), kinds):
        exponent = torch.rand(1, generator=generator, dtype=torch.float64).item()
        scale = 0.3 * (100 / 0.3) ** exponent
        try:
            failure = trial(UNIVARIATES[name], dtype, scale, generator)
        except Exception as error:
            failure = f"raised {type(error).__name__}"
        outcomes[name].append(failure and f"{failure} ({dtype}, scale {scale:.3g})")
    return outcomes


def peers() -> dict[str, Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]]:
    from splines import SIDES

    return {name: SIDES[name] for name in ("normflows", "nflows", "zuko")}


def peer_trial(side: Callable[..., tuple[Tensor, Tensor]], generator: torch.Generator) -> str:
    """Result of a peer's spline of 8 bins on [-3, 3]: 'ok', 'raised' or 'not finite'."""
    exponent = torch.rand(1, generator=generator, dtype=torch.float64).item()
    scale = 0.3 * (100 / 0.3) ** exponent
    x = 3 * torch.randn(POINTS, generator=generator)
    params = scale * torch.randn(POINTS, 23, generator=generator)
    params.requires_grad_()
    try:
        for inverse in (False, True):
            y, log_derivative = side(x, params, inverse)
            (gradient,) = torch.autograd.grad(y.sum() + log_derivative.sum(), params)
            if not all(t.isfinite().all() for t in (y, log_derivative, gradient)):
                return "not finite"
            x = y.detach()
    except Exception:
        return "raised"
    return "ok"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--peer-trials", type=int, default=300, help="for each peer")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()

    rows: list[dict[str, Any]] = []
    for name, outcomes in run_trials(UNIVARIATES, arguments.trials).items():
        failures = [outcome for outcome in outcomes if outcome]
        for failure in failures[:5]:
            print(f"{name}: {failure}")
        raised = sum("raised" in failure for failure in failures)
        wrong = sum("wrong" in failure for failure in failures)
        rows.append(
            {
                "side": f"mixer_bijectors.{name}",
                "trials": len(outcomes),
                "raised": raised,
                "not finite": len(failures) - raised - wrong,
                "comes back wrong": wrong,
            }
        )
    for name, side in peers().items():
        generator = torch.Generator().manual_seed(0)
        results = [peer_trial(side, generator) for _ in range(arguments.peer_trials)]
        rows.append(
            {
                "side": name,
                "trials": len(results),
                "raised": results.count("raised"),
                "not finite": results.count("not finite"),
                "comes back wrong": "not tried",
            }
        )
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
