"""The gain of learned noise of dequantisation, at equal cost, and the tightness of bounds.

Each model is trained twice for the same time, with uniform noise and with the noise of a
`VariationalDequantization` (Flow++, arXiv 1902.00275), on photographs at 32 x 32 or on other
images (see `density.py`, whose data, optimiser and schedule these are). The learning rate of
each side is the best of a few by validation bits per dimension after a short run. Then the
bits per dimension of test images are bounded by k = 1, 10 and 100 samples of noise.

    python benchmarks/dequantization.py --budget 300 --seeds 0 1 2 --json dequantization.json

Times are process times. `--only` picks rows, and runs that the JSON file already holds are not
run again.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch
from common import Runs, fitting_parser, print_table
from density import BATCH, Experiment, ImageExperiment, mixer_flow

import mixer_bijectors as mb
from mixer_bijectors.images import importance_weighted_bits

LEARNING_RATES = (4e-3, 8e-3, 1.6e-2)
BOUNDS = (1, 10, 100)  # samples of noise
FLOWS: dict[str, Callable[[], Any]] = {
    "MixerFlow 4 layers, hidden 48": partial(mixer_flow, 4, 48),
    "local, 4 layers, hidden 64": mb.presets.local,
}


def sides(flow: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    return {"uniform": flow, "variational": lambda: mb.VariationalDequantization(flow())}


ROWS = {
    f"{name} | {noise}": make
    for name, flow in FLOWS.items()
    for noise, make in sides(flow).items()
}


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


class Dequantization:
    """Trains a row on images, and bounds the bits of others."""

    def __init__(self, data: Experiment, images: int) -> None:
        self.data = data
        data.clock = time.process_time  # type: ignore[method-assign]
        test = data.splits["test"]
        # Spread over the split, since neighbours may show the same.
        self.images = test[torch.linspace(0, len(test) - 1, min(images, len(test))).long()]

    def run(
        self, row: str, learning_rate: float, budget: float, seed: int, split: str
    ) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = ROWS[row]()
        steps, seconds = self.data.fit(model, learning_rate, budget)
        bits = self.data.evaluate(model, split)
        result = {
            "parameters": parameters(model),
            "learning rate": learning_rate,
            "steps": steps,
            "seconds per step": seconds,
            f"{split} bits/dim": bits if math.isfinite(bits) else math.inf,
        }
        if split == "test":
            result |= {f"k = {k}": self.bound(model.eval(), k) for k in BOUNDS}
        return result

    def bound(self, model: Any, k: int) -> float:
        generator = torch.Generator().manual_seed(0)
        bits = importance_weighted_bits(
            model, self.images, k, chunk_size=BATCH, generator=generator
        )
        return float(bits.mean())


def main() -> None:
    parser = fitting_parser(__doc__, budget=300)
    parser.add_argument("--images", help="a dataset to take in place of the photographs")
    parser.add_argument("--bounded", type=int, default=64, help="test images with k samples")
    parser.add_argument("--only", nargs="+", default=list(ROWS), help="rows to run")
    arguments = parser.parse_args()
    search = arguments.search or arguments.budget / 5

    data = ImageExperiment(arguments.images) if arguments.images else Experiment()
    experiment = Dequantization(data, arguments.bounded)
    runs = Runs(arguments.json)

    def run(row: str, rate: float, budget: float, seed: int, split: str) -> dict[str, Any]:
        key = f"{row} | {split} | lr {rate} | {budget:g} s | seed {seed}"
        return runs(key, partial(experiment.run, row, rate, budget, seed, split))

    results = {}
    for row in arguments.only:
        tries = {
            rate: run(row, rate, search, 0, "val")["val bits/dim"] for rate in LEARNING_RATES
        }
        best = min(tries, key=lambda rate: tries[rate])
        results[row] = [
            run(row, best, arguments.budget, seed, "test") for seed in arguments.seeds
        ]

    def average(row: str, key: str) -> float:
        return mean(result[key] for result in results[row])

    table = []
    for row, seeds in results.items():
        against = row.replace("variational", "uniform")
        gain = (
            average(row, "test bits/dim") - average(against, "test bits/dim")
            if against in results
            else math.nan
        )
        table.append(
            {
                "model | noise": row.replace(" | ", ", "),
                "parameters": f"{seeds[0]['parameters']:,}",
                "learning rate": f"{seeds[0]['learning rate']:g}",
                "steps": round(average(row, "steps")),
                "s/step": f"{average(row, 'seconds per step'):.3f}",
                "test bits/dim": f"{average(row, 'test bits/dim'):.3f}",
                "against uniform": f"{gain:+.3f}",
                **{f"k = {k}": f"{average(row, f'k = {k}'):.3f}" for k in BOUNDS},
            }
        )
    print_table(table)


if __name__ == "__main__":
    main()
