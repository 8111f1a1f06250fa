"""One kind of layer swapped in the examples of normflows, nflows and zuko.

Each model is built as its library's example builds it, in smaller numbers of layers and steps,
and once more with one kind of its layers replaced by layers of this library, which are as wide
as equal numbers of parameters allow. Both train on the same batches by the same optimiser.
Measured are the loss on data that neither has seen, in nats (of the reverse divergence, up to a
constant, where the example has a target instead of data), and processor seconds of training.

    python benchmarks/swaps.py --seeds 0 1 2 3 4
"""

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import normflows as nf
import swap_data as data
import swap_models as models
import torch
import zuko
from common import Runs, print_table
from swap_data import Batch
from swap_models import Layer, Layers
from torch import Tensor, nn

import mixer_bijectors as mb

TESTS = 4000
# What comes in, and with which widths; nothing where the model is as its library has it.
Swap = tuple[Layer, list[int]] | None


class Example(NamedTuple):
    """A model of a library, what may take a layer's place, what it learns from, and how."""

    build: Callable[[Layers], nn.Module]
    swaps: Mapping[str, Layer]
    layers: int
    data: Callable[[int], Batch]
    steps: int
    batch: int
    rate: float
    decay: float = 0.0
    test: Callable[[int], Batch] | None = None
    optimizer: type[torch.optim.Adam | torch.optim.Adamax] = torch.optim.Adam
    reverse: bool = False


SPLINE = mb.RationalQuadratic()
INVERSE = mb.Inverse(SPLINE)
AUTOREGRESSIVE = nf.flows.AutoregressiveRationalQuadraticSpline
COUPLED = nf.flows.CoupledRationalQuadraticSpline
EXAMPLES = {
    "normflows: real NVP, reverse KL": Example(
        models.real_nvp,
        {"Coupling(Affine)": models.affine_coupling},
        *(16, data.latents_only, 400, 256, 1e-3, 1e-6),
        reverse=True,
    ),
    "normflows: autoregressive splines": Example(
        partial(models.spline_flow, AUTOREGRESSIVE, 0),
        {
            "Autoregressive(Inverse(RationalQuadratic))": partial(
                models.autoregressive, INVERSE
            ),
            "Autoregressive(RationalQuadratic)": partial(models.autoregressive, SPLINE),
        },
        *(4, data.unlabelled_moons, 300, 512, 1e-3, 1e-5),
    ),
    "normflows: spline couplings": Example(
        partial(models.spline_flow, COUPLED, 0),
        {
            "Coupling(Inverse(RationalQuadratic)), Elementwise": partial(
                models.coupling, INVERSE
            ),
            "Coupling(RationalQuadratic), Elementwise": partial(models.coupling, SPLINE),
            "Coupling(RationalQuadratic)": partial(models.coupling, SPLINE, both=False),
        },
        *(4, data.unlabelled_moons, 300, 512, 1e-3, 1e-5),
    ),
    "normflows: conditional, autoregressive": Example(
        partial(models.spline_flow, AUTOREGRESSIVE, 4),
        {
            "Autoregressive(Inverse(RationalQuadratic))": partial(
                models.autoregressive, INVERSE, context=4
            )
        },
        *(4, data.gaussian_of_context, 300, 128, 3e-4, 1e-5),
    ),
    "normflows: conditional, couplings": Example(
        partial(models.spline_flow, COUPLED, 4),
        {
            "Coupling(Inverse(RationalQuadratic)), Elementwise": partial(
                models.coupling, INVERSE, context=4
            )
        },
        *(4, data.gaussian_of_context, 300, 128, 3e-4, 1e-5),
    ),
    "normflows: circular, line and angle": Example(
        partial(models.circular, [1]),
        {"Coupling(RationalQuadratic)": partial(models.circular_coupling, [1])},
        *(6, data.line_and_angle, 200, 512, 1e-3, 1e-4),
    ),
    "normflows: circular, torus": Example(
        partial(models.circular, [0, 1]),
        {"Coupling(RationalQuadratic)": partial(models.circular_coupling, [0, 1])},
        *(6, data.torus, 200, 512, 1e-3, 1e-4),
    ),
    "normflows: Glow": Example(
        models.glow,
        {"PatchMixing(Coupling), ChannelMixing(Coupling)": models.mixing},
        *(8, partial(data.digits, slice(0, 1400)), 200, 128, 1e-3, 1e-5),
        partial(data.digits, slice(1400, None)),
        torch.optim.Adamax,
    ),
    "nflows: conditional moons": Example(
        models.conditional_moons,
        {
            "Autoregressive(Affine)": partial(
                models.autoregressive, mb.Affine(), context=1, num_blocks=1
            )
        },
        *(5, data.moons, 600, 128, 1e-3),
    ),
    "zuko: neural spline flow": Example(
        models.zuko_spline_flow,
        {
            "Coupling(Inverse(RationalQuadratic)), Elementwise": models.alternating_coupling,
            "Autoregressive(Inverse(RationalQuadratic))": models.alternating,
            "the same with the net of zuko": models.with_net_of_zuko,
        },
        *(3, data.unlabelled_moons, 500, 256, 1e-3),
    ),
}


def forward_divergence(model: Any, batch: Batch) -> Tensor:
    x, context = batch
    if isinstance(model, zuko.flows.Flow):
        return -model(context).log_prob(x).mean()
    log_prob = model.log_prob(x) if context is None else model.log_prob(x, context)
    return -log_prob.mean()


def reverse_divergence(
    model: nf.NormalizingFlow, batch: Batch, progress: float = 1.0
) -> Tensor:
    # The target enters by and by in the first half of the training, as in the example.
    return model.reverse_kld(len(batch[0]), beta=min(1.0, 0.001 + 2 * progress))


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def matching_widths(example: Example, layer: Layer) -> list[int]:
    """Widths, alike to 1, with the number of parameters nearest to that of the example."""
    wanted = size(example.build(None))

    def widths(total: int) -> list[int]:
        return [(total + i) // example.layers for i in range(example.layers)]

    def excess(total: int) -> int:
        return size(example.build(list(map(layer, itertools.count(), widths(total))))) - wanted

    total = next(total for total in itertools.count(example.layers) if excess(total) >= 0)
    return widths(min(total, total - 1, key=lambda t: abs(excess(t))))


def train(example: Example, swap: Swap, seed: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    layers = None
    if swap:
        layer, widths = swap
        layers = list(map(layer, itertools.count(), widths))
    model = example.build(layers)
    optimizer = example.optimizer(
        model.parameters(), lr=example.rate, weight_decay=example.decay
    )
    loss_of = reverse_divergence if example.reverse else forward_divergence
    torch.manual_seed(1000)
    test = (example.test or example.data)(TESTS)
    torch.manual_seed(seed)
    seconds, losses = 0.0, []
    for step in range(1, steps + 1):
        batch = example.data(example.batch)
        start = time.process_time()
        optimizer.zero_grad()
        options = {"progress": step / steps} if example.reverse else {}
        loss_of(model, batch, **options).backward()
        optimizer.step()
        seconds += time.process_time() - start
        if (step % 10 == 0 and step > 0.75 * steps) or step == steps:
            losses.append(held_out_loss(model, loss_of, test))
    return {"loss": fmean(losses), "seconds": seconds, "parameters": size(model)}


def held_out_loss(model: nn.Module, loss_of: Callable[..., Tensor], test: Batch) -> float:
    model.eval()
    # The same latents at each test, and a state of its own, so that batches stay the same.
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1000)
        loss = float(loss_of(model, test))
    model.train()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="fewer steps than each example has")
    parser.add_argument("--json", help="keep runs in this file, and go on from it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs, rows = Runs(arguments.json), []
    for name in arguments.only:
        example = EXAMPLES[name]
        steps = arguments.steps or example.steps
        swaps: dict[str, Swap] = {"as it is": None}
        for label, layer in example.swaps.items():
            swaps[label] = layer, matching_widths(example, layer)
        results = {
            label: [
                runs(f"{name} | {label} | {seed}", partial(train, example, swap, seed, steps))
                for seed in arguments.seeds
            ]
            for label, swap in swaps.items()
        }
        rows += [row(name, label, results) for label in swaps]
    print_table(rows)


def row(name: str, label: str, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, str]:
    theirs, ours = results["as it is"], results[label]
    differences = [a["loss"] - b["loss"] for a, b in zip(ours, theirs)]
    line = {
        "example": name,
        "layers": label,
        "parameters": f"{ours[0]['parameters']:,}",
        "processor s": f"{fmean(r['seconds'] for r in ours):.1f}",
        "loss": f"{fmean(r['loss'] for r in ours):.3f}",
    }
    if ours is theirs:
        return {**line, "difference": "", "over seeds": ""}
    return {
        **line,
        "example": "",
        "difference": f"{fmean(differences):+.3f}",
        "over seeds": f"{min(differences):+.3f} to {max(differences):+.3f}",
    }


if __name__ == "__main__":
    main()
