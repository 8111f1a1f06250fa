"""Bits per dimension of three sets of images at equal cost, and along training: who wins when.

The rows and the optimiser of `density.py`, on one core, of which only the time of the process
counts. The learning rate of each row starts from 0.008 and 0.016 and is doubled or halved until
the best of the short runs, by validation, is neither the largest nor the smallest; where the
full run then diverges, the next best is taken. Without a folder the photographs are those that
other packages bundle.

    python benchmarks/image_sets.py --budget 120 --json image_sets.json
    python benchmarks/image_sets.py --budget 120 --json image_sets.json --photos data/kodak
    python benchmarks/image_sets.py --budget 300 --json image_sets.json --images data/cifar10

`--images` reads a dataset with splits of its own, `--photos` a folder of photographs, which are
split in columns. `--only` picks rows; `--rates NAME` takes the learning rates found for the
folder of that name. `--picture PATH` draws bits of validation, read sixteen times in a run,
while the clock stands still. Runs that the JSON file already holds are not run again.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import Runs, fitting_parser, print_table
from density import ROWS, Experiment, ImageExperiment
from shift import read_photos

READINGS, READ, DIVERGED = 16, 256, 0.2


class Watched(Experiment):
    """A clock of the process that stands still while bits of validation are read."""

    paused = 0.0

    def clock(self) -> float:
        return time.process_time() - self.paused

    def watch(
        self, model: Any, learning_rate: float, budget: float
    ) -> tuple[int, float, list[tuple[float, float]]]:
        """Steps, the seconds for each, and bits of validation at some of the seconds."""
        split = self.splits["val"]
        few = torch.linspace(0, len(split) - 1, min(READ, len(split))).long()
        self.splits["some of val"] = split[few]
        curve: list[tuple[float, float]] = []
        start = self.clock()

        def read() -> None:
            now = self.clock()
            if now - start >= budget * 2 ** ((len(curve) - READINGS) / 2):
                curve.append((now - start, self.evaluate(model, "some of val")))
                print("{:.0f} s: {:.3f} bits/dim of validation".format(*curve[-1]), flush=True)
                self.paused += self.clock() - now

        return *self.fit(model, learning_rate, budget, after_step=read), curve


class WatchedImages(Watched, ImageExperiment):
    """Training, validation and test images of a dataset, in place of photographs."""


def train(
    data: Watched, build: Callable[[], Any], rate: float, budget: float, seed: int, split: str
) -> dict[str, Any]:
    """Train a model, and read its bits of a split."""
    torch.manual_seed(seed)
    model = build()
    curve: list[tuple[float, float]] = []
    if split == "test":
        steps, seconds, curve = data.watch(model, rate, budget)
    else:
        steps, seconds = data.fit(model, rate, budget)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning rate": rate,
        "steps": steps,
        "seconds per step": seconds,
        **data.results(model, split),
        "curve": curve,
    }


def search_rates(bits: Callable[[float], float]) -> dict[float, float]:
    """Bits by learning rate, from the best on, which is at neither end of those tried."""
    tries = {rate: bits(rate) for rate in (8e-3, 1.6e-2)}
    while True:
        best = min(tries, key=lambda rate: tries[rate])
        if best == max(tries):
            tries[2 * best] = bits(2 * best)
        elif best == min(tries):
            tries[best / 2] = bits(best / 2)
        else:
            return dict(sorted(tries.items(), key=lambda entry: entry[1]))


def best_runs(
    run: Callable[..., dict[str, Any]], search: float, budget: float, seeds: list[int]
) -> list[dict[str, Any]]:
    """Full runs at the best learning rate with which they do not diverge."""
    tries = search_rates(lambda rate: float(run(rate, search, 0, "val")["val bits/dim"]))
    for rate, short in tries.items():
        results = [run(rate, budget, seed, "test") for seed in seeds]
        if max(result["val bits/dim"] for result in results) < short + DIVERGED:
            break
    return results


def tabulate(name: str, results: list[dict[str, Any]], reference: float) -> dict[str, str]:
    """A row of the table, held against the bits of another."""
    bits = [result["test bits/dim"] for result in results]
    return {
        "model": name,
        "parameters": f"{results[0]['parameters']:,}",
        "learning rate": f"{results[0]['learning rate']:g}",
        "steps": str(round(mean(result["steps"] for result in results))),
        "s/step": f"{mean(result['seconds per step'] for result in results):.3f}",
        "test bits/dim": f"{mean(bits):.3f}",
        "over seeds": f"{min(bits):.3f} to {max(bits):.3f}" if len(bits) > 1 else "one seed",
        "against the first": f"{mean(bits) - reference:+.3f}",
    }


def draw(path: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for name, curve in curves.items():
        axis.plot(*zip(*curve), marker=".", label=name)
    axis.set(xscale="log", xlabel="seconds of one core", ylabel="validation bits/dim")
    best = min(bits for curve in curves.values() for _, bits in curve)
    axis.set_ylim(best - 0.1, best + 2)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = fitting_parser(__doc__, budget=120)
    parser.add_argument("--photos", help="a folder of photographs in place of the bundled ones")
    parser.add_argument("--images", help="a dataset in place of photographs")
    parser.add_argument("--rates", help="the dataset whose learning rates to take")
    parser.add_argument("--only", nargs="+", default=list(ROWS), help="rows to run")
    parser.add_argument("--picture", help="draw the first seed's runs into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.images or arguments.photos
    where = Path(folder).name if folder else "bundled"
    photos = read_photos(arguments.photos) if arguments.photos else None
    data = WatchedImages(arguments.images) if arguments.images else Watched(photos)
    runs = Runs(arguments.json)

    def run(name: str, rate: float, budget: float, seed: int, split: str) -> dict[str, Any]:
        source = arguments.rates if arguments.rates and split == "val" else where
        key = f"{source} | {name} | {split} | lr {rate:g} | {budget:g} s | seed {seed}"
        return runs(key, partial(train, data, ROWS[name], rate, budget, seed, split))

    search = arguments.search or arguments.budget / 10
    results = {
        name: best_runs(partial(run, name), search, arguments.budget, arguments.seeds)
        for name in arguments.only
    }
    reference = mean(result["test bits/dim"] for result in results[arguments.only[0]])
    print_table([tabulate(name, row, reference) for name, row in results.items()])
    if arguments.picture:
        draw(arguments.picture, {name: row[0]["curve"] for name, row in results.items()})


if __name__ == "__main__":
    main()
