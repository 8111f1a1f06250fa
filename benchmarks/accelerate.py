"""Models of normflows, nflows and sbi before and after `accelerate`, eager and compiled.

A training step is the mean negative log-density of a batch and its gradients; sampling is a
batch of the same size without gradients. Sides take turns; times are medians of the seconds
that the thread computes, on one thread, as other programs may use the machine. Differences are
the largest ones of log-densities, in float32. Sampling of autoregressive models goes from
feature to feature and is not compiled; `benchmarks/inversion.py` shows what
`accelerate_sampling` does for it.

    python benchmarks/accelerate.py --json accelerate.json
    python benchmarks/accelerate.py --tiny
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import normflows as nf
import torch
from common import Runs, print_table, timing_parser
from nflows import distributions, flows, transforms
from nflows.nn.nets import ResidualNet
from nflows.utils import create_alternating_binary_mask
from sbi.neural_nets.net_builders.flow import build_maf, build_nsf
from torch import Tensor, nn

import mixer_bijectors as mb

HIDDEN = 128
# A model, the density of a batch, and samples.
Sides = tuple[nn.Module, Callable[[Any], Tensor], Callable[[Any], object]]


def plain(model: nn.Module, x: Tensor) -> Sides:
    return model, lambda m: m.log_prob(x), lambda m: m.sample(len(x))


def nflows_model(layers: list[nn.Module], features: int, batch: int) -> Sides:
    base = distributions.StandardNormal([features])
    model = flows.Flow(transforms.CompositeTransform(layers), base)
    return plain(model, torch.randn(batch, features))


def nflows_coupling(features: int, layers: int, batch: int) -> Sides:
    def net(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=HIDDEN)

    spline = transforms.PiecewiseRationalQuadraticCouplingTransform
    parts: list[nn.Module] = []
    for index in range(layers):
        mask = create_alternating_binary_mask(features, even=index % 2 == 0)
        coupling = spline(mask, net, num_bins=8, tails="linear", tail_bound=3.0)
        parts += [coupling, transforms.LULinear(features)]
    return nflows_model(parts, features, batch)


def nflows_autoregressive(features: int, layers: int, batch: int) -> Sides:
    spline = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    parts: list[nn.Module] = []
    for _ in range(layers):
        layer = spline(features, HIDDEN, num_bins=8, tails="linear", tail_bound=3.0)
        parts += [layer, transforms.LULinear(features)]
    return nflows_model(parts, features, batch)


def normflows_spline(layer: Any, features: int, layers: int, batch: int) -> Sides:
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [layer(features, 2, HIDDEN), nf.flows.LULinearPermute(features)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(features), parts)
    return plain(model, torch.randn(batch, features))


def sbi_estimator(build: Any, features: int, batch: int) -> Sides:
    theta, x = torch.randn(2 * batch, features), torch.randn(2 * batch, features)
    estimator = build(theta, x)
    return (
        estimator,
        lambda m: -m.loss(theta[:batch], x[:batch]),
        lambda m: m.sample((batch,), x[:1]),
    )


def glow(size: int, blocks: int, batch: int) -> Sides:
    levels = [
        [*(nf.flows.GlowBlock(channels, 64) for _ in range(blocks)), nf.flows.Squeeze()]
        for channels in (24, 12)
    ]
    shapes = [(24, size // 4, size // 4), (6, size // 2, size // 2)]
    bases = [nf.distributions.DiagGaussian(shape) for shape in shapes]
    model = nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], class_cond=False)
    x = torch.randn(batch, 3, size, size)
    return model, lambda m: m.log_prob(x, None), lambda m: m.sample(batch)


def models(tiny: bool) -> dict[str, Callable[[], Sides]]:
    wide = (4, 1, 16) if tiny else (32, 3, 256)
    batch = 16 if tiny else 200
    coupled = nf.flows.CoupledRationalQuadraticSpline
    autoregressive = nf.flows.AutoregressiveRationalQuadraticSpline
    return {
        "sbi nsf, 5 parameters": lambda: sbi_estimator(build_nsf, 5, batch),
        "nflows NSF coupling": lambda: nflows_coupling(*wide),
        "normflows NSF coupling": lambda: normflows_spline(coupled, *wide),
        "nflows NSF autoregressive": lambda: nflows_autoregressive(*wide),
        "normflows NSF autoregressive": lambda: normflows_spline(autoregressive, *wide),
        "sbi maf, 5 parameters": lambda: sbi_estimator(build_maf, 5, batch),
        "sbi nsf, 2 parameters": lambda: sbi_estimator(build_nsf, 2, batch),
        "normflows Glow": lambda: glow(8 if tiny else 32, 1 if tiny else 4, 4 if tiny else 16),
    }


def thread_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of this thread in each run, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if turn >= 2:
                seconds[name].append(time.thread_time() - start)
    return {name: median(values) for name, values in seconds.items()}


def measure(make: Callable[[], Sides], repeats: int, compile: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model, log_prob, sample = make()
    with torch.no_grad():
        log_prob(model)  # the first batch of ActNorm
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    sides = {"before": model, "accelerated": mb.accelerate(copy.deepcopy(model))}
    if compile:
        sides["compiled"] = mb.accelerate(copy.deepcopy(model), compile=True)

    def step(side: nn.Module) -> None:
        side.zero_grad()
        log_prob(side).mean().neg().backward()

    def draw(side: nn.Module) -> None:
        with torch.no_grad():
            sample(side)

    row: dict[str, Any] = {}
    for task, run in (("training", step), ("sampling", draw)):
        start = time.perf_counter()
        run(list(sides.values())[-1]), run(list(sides.values())[-1])
        if compile:
            row[f"{task}: compile s"] = f"{time.perf_counter() - start:.0f}"
        seconds = thread_seconds(
            {name: lambda run=run, side=side: run(side) for name, side in sides.items()},  # type: ignore[misc]
            repeats,
        )
        row[f"{task}, ms"] = f"{1e3 * seconds['before']:.1f}"
        for name in list(sides)[1:]:
            row[f"{task}: {name}"] = f"{seconds['before'] / seconds[name]:.2f}"
    with torch.no_grad():
        want, *got = (log_prob(side) for side in sides.values())
    row["difference"] = f"{max(float((value - want).abs().max()) for value in got):.0e}"
    row["of log-densities up to"] = f"{float(want.abs().max()):.0f}"
    return row


def main() -> None:
    parser = timing_parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it runs")
    parser.add_argument("--only", nargs="+", help="names of rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs, rows = Runs(arguments.json), []
    for name, make in models(arguments.tiny).items():
        if arguments.only is None or name in arguments.only:
            compile = not (arguments.no_compile or arguments.tiny)
            repeats = 2 if arguments.tiny else arguments.repeats
            rows.append({"model": name, **runs(name, partial(measure, make, repeats, compile))})
    print_table(rows)


if __name__ == "__main__":
    main()
