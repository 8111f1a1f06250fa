"""Memory and time of a training step: plain, with activation checkpointing, and reversible.

Memory is the most bytes of storages that live at once, by a census of what operations return,
beyond the model, its gradients and the batch; beside it stands the growth of the resident set.
Activation checkpointing is that of PyTorch, around each layer. Time is processor time on one
thread. All ways take turns in one process, on the same weights.

`--trained` compares gradients after training: each model takes so many steps of Adam on random
walks, and then the gradients of one batch are compared, plain and reversible, in float32 and,
for the same weights, in float64.

`--largest` estimates the side of the largest square image that trains within 16 GiB at batch
4, parameters, gradients and the moments of Adam included. Bytes are measured at two sides, and
taken to grow linearly with the number of pixels from there on, which is an extrapolation. The
check is what a step at a third side needs, measured, over what the extrapolation says.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import nflows.transforms as nt
import normflows as nf
import torch
from census import Census, resident_growth
from common import print_table, write_json
from density import Glow
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from nflows.nn.nets import ResidualNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mixer_bijectors as mb

MIB = 2**20
LIMIT = 16 * 2**30
WAYS = ("plain", "checkpointing", "reversible")


def mixer_flow(side: int, depth: int) -> nn.Module:
    """With patches such that there are about as many as each has features."""
    patch = max(p for p in range(1, side) if side % p == 0 and 2 * p * p <= side)
    return mb.MixerFlow((3, side, side), patch, depth)


def glow(side: int, depth: int, *, hidden: int = 64) -> nn.Module:
    """Normflows' Glow with `depth` blocks in each of three levels."""
    return Glow(depth, hidden, shape=(3, side, side))


def neural_splines(features: int, depth: int) -> nn.Module:
    """Nflows' neural spline flow of couplings."""
    layers = [
        layer
        for index in range(depth)
        for layer in (
            nt.LULinear(features),
            nt.PiecewiseRationalQuadraticCouplingTransform(
                (torch.arange(features) + index) % 2,
                partial(ResidualNet, hidden_features=64),
                tails="linear",
                tail_bound=3.0,
            ),
        )
    ]
    return NflowsFlow(nt.CompositeTransform(layers), StandardNormal([features]))


Make = Callable[[int], nn.Module]
SETTINGS: dict[str, tuple[Make, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # How to build it, depths, a few of them for a quick look, the shape of a batch.
    "MixerFlow, 32 pixels": (partial(mixer_flow, 32), (4, 8, 32, 128), (2, 4), (16, 3, 32, 32)),
    "MixerFlow, 128 pixels": (partial(mixer_flow, 128), (4, 8, 32, 128), (), (2, 3, 128, 128)),
    "normflows' Glow, 64 pixels": (partial(glow, 64), (4, 8, 16, 32), (), (4, 3, 64, 64)),
    "nflows' NSF, 64 features": (
        partial(neural_splines, 64),
        (4, 8, 32, 128),
        (2, 4),
        (256, 64),
    ),
}


def log_prob(model: Any, x: Tensor) -> Tensor:
    return model.log_prob(*((x, None) if isinstance(model, nf.MultiscaleFlow) else (x,)))


def step(model: nn.Module, x: Tensor) -> None:
    (-log_prob(model, x).mean()).backward()


def changed(model: nn.Module, way: str, keep_every: int | None = None) -> nn.Module:
    """A copy of the model that trains in one of the ways."""
    model = copy.deepcopy(model)
    if way == "reversible":
        return mb.reversible(model, keep_every=keep_every)
    if way == "checkpointing":
        for layer in layers_of(model):
            name = "forward" if isinstance(layer, nt.Transform) else "inverse"
            run = getattr(layer, name)
            setattr(layer, name, partial(checkpoint, run, use_reentrant=False))
    return model


def layers_of(model: Any) -> Iterator[nn.Module]:
    if isinstance(model, NflowsFlow):
        yield from model._transform._transforms
    elif isinstance(model, nf.MultiscaleFlow):
        for level in model.flows:
            yield from level
    else:
        yield from model.flows


def peak_bytes(model: nn.Module, x: Tensor) -> int:
    """Of a step, beyond the model and its gradients, which are there."""
    step(model, x)
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    with Census(iter((x, *parameters, *model.buffers(), *gradients))) as census:
        step(model, x)
    return census.peak


def seconds(models: dict[str, nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Processor time of a step, the median; the ways take turns."""
    times: dict[str, list[float]] = {way: [] for way in models}
    for _ in range(repeats):
        for way, model in models.items():
            start = time.process_time()
            step(model, x)
            times[way].append(time.process_time() - start)
    return {way: median(values) for way, values in times.items()}


def measure(
    name: str,
    make: Make,
    depth: int,
    shape: tuple[int, ...],
    repeats: int,
    keep_every: int | None,
) -> Any:
    torch.manual_seed(0)
    x = 2 * torch.rand(shape) - 1
    model = make(depth)
    with torch.no_grad():
        log_prob(model, x)  # ActNorm sees its first batch
    models = {way: changed(model, way, keep_every) for way in WAYS}
    peaks = {way: peak_bytes(models[way], x) for way in WAYS}
    resident = {way: resident_growth(partial(step, models[way], x)) for way in WAYS}
    times = seconds(models, x, repeats)
    row: dict[str, Any] = {"model": name, "layers": depth}
    for way in WAYS:
        row[f"{way}, MiB"] = f"{peaks[way] / MIB:.1f}"
    for way in WAYS:
        grown = resident[way]
        row[f"resident, {way}"] = "" if grown is None else f"{grown / MIB:.0f}"
    for way in WAYS[1:]:
        row[f"time, {way}"] = f"{times[way] / times['plain']:.2f}"
    gradients = [
        torch.cat([p.grad.flatten() for p in models[way].parameters() if p.grad is not None])
        for way in ("plain", "reversible")
    ]
    row["gradients differ by"] = (
        f"{(gradients[1] - gradients[0]).norm() / gradients[0].norm():.0e}"
    )
    return row


def walks(shape: tuple[int, ...]) -> Tensor:
    """Random walks along each row, so that there is something to learn."""
    return torch.tanh(torch.randn(shape).cumsum(-1) / shape[-1] ** 0.5)


def after_training(
    name: str, make: Make, depth: int, shape: tuple[int, ...], steps: int
) -> dict[str, Any]:
    """Relative difference of all gradients, plain and reversible, of a trained model."""
    torch.manual_seed(0)
    model = make(depth)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        step(model, walks(shape))
        optimizer.step()
    x = walks(shape)
    row: dict[str, Any] = {"model": name, "layers": depth, "steps": steps}
    for dtype, label in ((torch.float32, "float32"), (torch.float64, "float64")):
        found = []
        for way in ("plain", "reversible"):
            one = changed(model, way).to(dtype)
            one.zero_grad()
            step(one, x.to(dtype))
            grads = [p.grad.flatten() for p in one.parameters() if p.grad is not None]
            found.append(torch.cat(grads).double())
        difference = (found[1] - found[0]).norm() / found[0].norm()
        row[f"gradients differ by, {label}"] = f"{difference:.0e}"
        drifts = [getattr(module, "last_drift", None) for module in one.modules()]
        row[f"drift, {label}"] = f"{max(float(d) for d in drifts if d is not None):.0e}"
    return row


def largest(tiny: bool) -> Iterator[dict[str, Any]]:
    """Sides of the largest images, by way and model, at batch 4."""
    depth = 2 if tiny else 32
    cases: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
        "normflows' Glow, 3 levels of 32, 256 channels": (
            partial(glow, hidden=256),
            (32, 64, 128),
        ),
        "MixerFlow, 32 layers": (mixer_flow, (72, 128, 200)),
    }
    for name, (make, sides) in cases.items():
        row: dict[str, Any] = {"model": name}
        for way in WAYS:
            totals = []
            for side in (32, 64, 72) if tiny else sides:
                torch.manual_seed(0)
                x = 2 * torch.rand(4, 3, side, side) - 1
                plain = make(side, depth)
                with torch.no_grad():
                    log_prob(plain, x)
                model = changed(plain, way)
                held = sum(4 * p.numel() * p.element_size() for p in model.parameters())
                totals.append((side**2, held + x.nbytes + peak_bytes(model, x)))
            (few, small), (many, large), (most, found) = totals
            slope = (large - small) / (many - few)
            row[way] = f"{((LIMIT - small) / slope + few) ** 0.5:.0f}"
            row[f"check, {way}"] = f"{found / (small + slope * (most - few)):.2f}"
            sizes = [f"{pixels**0.5:.0f}: {n / MIB:.0f} MiB" for pixels, n in totals]
            print(way, sizes, flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="start of names of models", default=[""])
    parser.add_argument("--layers", type=int, nargs="+", help="depths in place of the default")
    parser.add_argument("--trained", type=int, help="compare after so many steps instead")
    parser.add_argument("--keep-every", type=int, help="of reversible models, in steps")
    parser.add_argument(
        "--largest", action="store_true", help="estimate the largest image alone"
    )
    parser.add_argument("--tiny", action="store_true", help="small models, as a check")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*is deprecated")
    rows = []
    for name, (make, depths, few, shape) in SETTINGS.items():
        if options.largest or not name.startswith(tuple(options.only)):
            continue
        for depth in options.layers or (few if options.tiny else depths):
            if options.trained:
                rows.append(after_training(name, make, depth, shape, options.trained))
            else:
                rows.append(
                    measure(name, make, depth, shape, options.repeats, options.keep_every)
                )
            print(rows[-1], flush=True)
    if rows:
        print_table(rows)
    images = list(largest(options.tiny)) if options.largest else []
    if images:
        print_table(images)
    write_json(options.json, {"steps": rows, "largest images": images})


if __name__ == "__main__":
    main()
