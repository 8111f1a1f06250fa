"""Rational-quadratic splines: this library against normflows, nflows, zuko and torchflows.

One spline for each of 4096 x 48 numbers, 8 bins, most of them inside the interval: the data
direction, its inverse, and a forward and a backward pass for gradients of input and parameters.
Each side gets its parameters in the memory order in which its own layers hand them over: for
this library's couplings all first parameters, then all second ones. `interleaved` is this
library with the parameters of each number side by side, as its autoregressive layers and all
peers have them. Compiled sides are those that torch.compile can take.

    python benchmarks/splines.py --json splines.json
    python benchmarks/splines.py --shape 256 2
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import nflows.transforms.splines as nflows_splines
import torch
import zuko
from common import peak_memory, print_table, time_in_turn, timing_parser, write_json
from normflows.utils import splines as normflows_splines
from torch import Tensor
from torchflows.bijections.finite.autoregressive.transformers.spline import (
    rational_quadratic as torchflows_splines,
)

import mixer_bijectors as mb

BINS, BOUND = 8, 3.0
Side = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def split(params: Tensor) -> tuple[Tensor, ...]:
    return params.split([BINS, BINS, BINS - 1], dim=-1)


def mixer_bijectors_spline(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return mb.RationalQuadratic(BINS, BOUND)(x, params, inverse)


def peer(function: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return function(x, *split(params), inverse=inverse, tails="linear", tail_bound=BOUND)


def zuko_spline(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    transform = zuko.transforms.MonotonicRQSTransform(*split(params), bound=BOUND)
    if not inverse:
        return transform.call_and_ladj(x)
    y = transform.inv(x)
    return y, -transform.log_abs_det_jacobian(y, x)


@cache
def torchflows_transformer(features: int) -> Any:
    return torchflows_splines.RationalQuadratic((features,), boundary=BOUND, n_bins=BINS)


def torchflows_spline(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    transformer = torchflows_transformer(x.shape[1])
    return (transformer.inverse if inverse else transformer.forward)(x, params)


SIDES: dict[str, Side] = {
    "mixer_bijectors": mixer_bijectors_spline,
    "mixer_bijectors, interleaved": mixer_bijectors_spline,
    "normflows": partial(peer, normflows_splines.unconstrained_rational_quadratic_spline),
    "nflows": partial(peer, nflows_splines.unconstrained_rational_quadratic_spline),
    "zuko": zuko_spline,
    "torchflows": torchflows_spline,
}


def tasks(
    name: str, side: Side, shape: Sequence[int], device: str = "cpu"
) -> dict[str, Callable[[], object]]:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(*shape, generator=generator, device=device).requires_grad_()
    params = torch.randn(*shape, 3 * BINS - 1, generator=generator, device=device)
    if name == "mixer_bijectors":
        params = params.mT.contiguous().mT
    params.requires_grad_()
    cotangents = (torch.randn_like(x), torch.randn_like(x))
    if name == "torchflows":  # its log-determinant comes summed over the features
        cotangents = (cotangents[0], torch.randn(len(x)))

    def infer(inverse: bool) -> object:
        with torch.no_grad():
            return side(x, params, inverse)

    return {
        "forward": lambda: infer(False),
        "inverse": lambda: infer(True),
        "forward + backward": lambda: torch.autograd.grad(
            side(x, params, False), (x, params), cotangents
        ),
    }


def main() -> None:
    parser = timing_parser(__doc__)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 48), help="of the input")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch._dynamo.config.cache_size_limit = 64

    shape = arguments.shape
    sides = {f"{name}, eager": tasks(name, side, shape) for name, side in SIDES.items()}
    if not arguments.no_compile:
        for name, side in SIDES.items():
            compiled = tasks(name, torch.compile(side), shape)
            try:
                for run in compiled.values():
                    run()
            except Exception as error:
                print(f"{name} does not compile: {type(error).__name__}")
            else:
                sides[f"{name}, compiled"] = compiled

    rows: list[dict[str, Any]] = [{"side": name} for name in sides]
    for task in ("forward", "inverse", "forward + backward"):
        seconds = time_in_turn(
            {name: runs[task] for name, runs in sides.items()}, arguments.repeats
        )
        peers = {name: s for name, s in seconds.items() if not name.startswith("mixer")}
        for row in rows:
            mine, mode = seconds[row["side"]], row["side"].split(", ")[-1]
            same = min(s for name, s in peers.items() if name.endswith(mode))
            row[f"{task}, ms"] = f"{1e3 * mine:.1f}"
            row[f"{task}: fastest peer / this"] = f"{same / mine:.2f}"
            row[f"{task}: of any mode"] = f"{min(peers.values()) / mine:.2f}"
    for row in rows:
        row["peak MB"] = f"{peak_memory(sides[row['side']]['forward + backward']) / 2**20:.0f}"
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
