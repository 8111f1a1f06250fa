"""Density of grids with another structure than photographs have, at equal cost.

Photographs whose pixels are all in one fixed random order, photographs rolled around by a
random number of rows and columns, and fields of a simulation: the velocities and the pressure
of random incompressible flows in a periodic square. normflows' Glow, MixerFlow, the local
preset, and a MAF of normflows on flattened pixels, its slow direction that of samples. Learning
rates and clock are those of `image_sets.py`.

    python benchmarks/structured.py --budget 60 --search 6 --json structured.json

`--only` picks data. Runs that the JSON file already holds are not run again.
"""

import math
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import normflows as nf
import torch
from common import Runs, fitting_parser, print_table
from density import BATCH, ROWS, SIZE
from image_sets import Watched, best_runs, train
from torch import Tensor

SNAPSHOTS, SPREAD = 256, 40.0


class MAF(nf.NormalizingFlow):
    """Masked autoregressive flow of flattened pixels, normalised and reversed in between."""

    def __init__(self, num_layers: int = 3, hidden_features: int = 256) -> None:
        features = 3 * SIZE**2
        flows = []
        for _ in range(num_layers):
            layer = nf.flows.MaskedAffineAutoregressive(features, hidden_features)
            flows += [nf.flows.Permute(features, "swap"), nf.flows.Reverse(layer)]
            flows += [nf.flows.ActNorm((features,))]
        super().__init__(nf.distributions.DiagGaussian(features), flows)

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x.flatten(1))


MODELS: dict[str, Callable[[], Any]] = {
    name: ROWS[name]
    for name in (
        "Glow K 4, hidden 64",
        "MixerFlow 4 layers, hidden 48",
        "local, 4 layers, hidden 64",
    )
}
MODELS["MAF 3 layers, hidden 256"] = MAF


class Permuted(Watched):
    """Photographs with their pixels in one random order."""

    def prepare(
        self, x: Tensor, permute: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        return super().prepare(x, True, generator)


class Rolled(Watched):
    """Photographs that are rolled around, each by any number of rows and columns."""

    def prepare(
        self, x: Tensor, permute: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        shifts = torch.randint(SIZE, (len(x), 2), generator=generator).tolist()
        rolled = torch.stack([image.roll(s, (1, 2)) for image, s in zip(x, shifts)])
        return super().prepare(rolled, permute, generator)


class FlowFields(Watched):
    """Both velocities and the pressure of incompressible flows, in 256 levels."""

    def __init__(self) -> None:
        self.splits = {
            split: flow_fields(SNAPSHOTS, torch.Generator().manual_seed(seed))
            for seed, split in enumerate(("val", "test"))
        }

    def batch(self, permute: bool = False) -> Tensor:
        return self.prepare(flow_fields(BATCH), permute)


def flow_fields(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Snapshots of flows whose stream functions are Gaussian random fields.

    The spectrum of the stream function falls with the third power of the wave number. The
    pressure solves Poisson's equation, with the velocities' gradients on the right.
    """
    k = torch.fft.fftfreq(SIZE, 1 / SIZE)
    rows, columns = torch.meshgrid(k, k, indexing="ij")
    square = rows**2 + columns**2
    square[0, 0] = math.inf  # no mean
    noise = torch.fft.fft2(torch.randn(count, SIZE, SIZE, generator=generator))
    stream = noise * square**-1.5

    def field(spectrum: Tensor) -> Tensor:
        return torch.fft.ifft2(spectrum).real

    down, right = field(1j * columns * stream), field(-1j * rows * stream)
    bend = field(rows**2 * stream) * field(columns**2 * stream)
    twist = field(rows * columns * stream).square()
    pressure = field(torch.fft.fft2(2 * (bend - twist)) / -square)
    fields = torch.stack([down, right, pressure], 1)
    fields = fields / fields.flatten(2).std(2).mean(0)[:, None, None]
    return (128 + SPREAD * fields).clamp(0, 255).to(torch.uint8)


DATA: dict[str, Callable[[], Watched]] = {
    "permuted pixels": Permuted,
    "rolled": Rolled,
    "flow fields": FlowFields,
}


def main() -> None:
    parser = fitting_parser(__doc__, budget=60)
    parser.add_argument("--only", nargs="+", default=list(DATA), help="data to run on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(arguments.json)
    search = arguments.search or arguments.budget / 10
    table: dict[str, dict[str, str]] = {name: {"model": name} for name in MODELS}

    def run(
        data: Watched, place: str, rate: float, budget: float, seed: int, split: str
    ) -> dict[str, Any]:
        key = f"{place} | {split} | lr {rate:g} | {budget:g} s | seed {seed}"
        build = MODELS[place.split(" | ")[1]]
        return runs(key, partial(train, data, build, rate, budget, seed, split))

    for where in arguments.only:
        data = DATA[where]()
        for name, row in table.items():
            tried = partial(run, data, f"{where} | {name}")
            results = best_runs(tried, search, arguments.budget, arguments.seeds)
            row["parameters"] = f"{results[0]['parameters']:,}"
            row["s/step"] = f"{mean(result['seconds per step'] for result in results):.3f}"
            bits = mean(result["test bits/dim"] for result in results)
            row[where] = f"{bits:.3f} at {results[0]['learning rate']:g}"
    print_table(list(table.values()))


if __name__ == "__main__":
    main()
