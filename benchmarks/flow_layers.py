"""MixerFlows with different inner flows at equal wall clock, on photographs and on digits.

Photographs at 32 x 32 as in density.py (every fourth test patch, as exact traces take long),
and the digits of scikit-learn at 8 x 8, split at random once into 1200 for training, 300 for
validation and 297 for testing. One model for each inner flow, two layers each; the learning
rate of each is the best of three by validation bits per dimension after a short run.

    python benchmarks/flow_layers.py --budget 60 --json flow_layers.json
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import normflows as nf
import torch
from common import print_table, write_json
from density import BATCH, Experiment
from sklearn.datasets import load_digits
from torch import Tensor

import mixer_bijectors as mb

LEARNING_RATES = (2e-3, 6e-3, 1.6e-2)
PRESETS: dict[str, Callable[..., mb.MixerFlow]] = {
    "affine": partial(mb.presets.affine, hidden_features=48, num_blocks=1),
    "spline": partial(mb.presets.spline, hidden_features=48, num_blocks=1),
    "KAN net": partial(mb.presets.kan, hidden_features=48),
    "KANLayer": mb.presets.kan_layer,
    "MAF hybrid": partial(mb.presets.maf_hybrid, hidden_features=48, num_blocks=1),
    "residual": partial(mb.presets.residual, hidden_features=48),
    "FFJORD": partial(mb.presets.ffjord, hidden_features=48, tol=1e-3),
}


class Photos(Experiment):
    """Photographs, with fewer test patches."""

    patch_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.splits["val"] = self.splits["val"][::4]
        self.splits["test"] = self.splits["test"][::4]


class Digits(Experiment):
    """Digits of 17 levels."""

    shape = (1, 8, 8)
    patch_size = 2

    def __init__(self) -> None:
        levels = torch.as_tensor(load_digits().images, dtype=torch.float32).unsqueeze(1)
        order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))
        self.train, val, test = levels[order].split((1200, 300, len(levels) - 1500))
        self.splits = {"val": val, "test": test}

    def batch(self, permute: bool = False) -> Tensor:
        return self.prepare(self.train[torch.randint(len(self.train), (BATCH,))])

    def prepare(
        self, x: Tensor, permute: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        return (x + torch.rand(x.shape, generator=generator)) * (2 / 17) - 1

    def bits(self, model: Any, x: Tensor) -> Tensor:
        return super().bits(model, x) + math.log2(17 / 256)


def run(
    data: Experiment, name: str, learning_rate: float, budget: float, split: str
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = PRESETS[name](data.shape, data.patch_size, 2, shift_every=2)  # type: ignore[attr-defined]
    # Power iterations keep the Lipschitz constants of residual flows below one.
    after_step = partial(nf.utils.update_lipschitz, model, 5) if name == "residual" else int
    steps, seconds = data.fit(model, learning_rate, budget, after_step=after_step)
    bits = data.evaluate(model, split)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning rate": learning_rate,
        "steps": steps,
        "s/step": seconds,
        "bits/dim": bits if math.isfinite(bits) else math.inf,
    }
    if split == "test":
        model.eval()
        start = time.perf_counter()
        with torch.no_grad():
            model.sample(64)
        result["sampling 64, s"] = time.perf_counter() - start
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=60, help="seconds for each run")
    parser.add_argument("--search", type=float, help="seconds for each try of a learning rate")
    parser.add_argument("--json", help="keep runs in this file, and go on from it")
    arguments = parser.parse_args()
    search = arguments.search or arguments.budget / 5

    runs: dict[str, dict[str, Any]] = {}
    if arguments.json and Path(arguments.json).exists():
        runs = json.loads(Path(arguments.json).read_text())

    datasets = {"photos": Photos(), "digits": Digits()}

    def cached(
        data_name: str, name: str, rate: float, budget: float, split: str
    ) -> dict[str, Any]:
        key = f"{data_name} | {name} | {split} | lr {rate} | {budget:g} s"
        if key not in runs:
            runs[key] = run(datasets[data_name], name, rate, budget, split)
            print(key, runs[key], flush=True)
            write_json(arguments.json, runs)
        return runs[key]

    rows = []
    for data_name in datasets:
        for name in PRESETS:
            tries = {
                rate: cached(data_name, name, rate, search, "val")["bits/dim"]
                for rate in LEARNING_RATES
            }
            for rate in sorted(LEARNING_RATES, key=tries.__getitem__):
                result = cached(data_name, name, rate, arguments.budget, "test")
                if result["bits/dim"] < tries[rate]:  # otherwise it has diverged
                    break
            rows.append(
                {
                    "data": data_name,
                    "inner flow": name,
                    "parameters": f"{result['parameters']:,}",
                    "learning rate": f"{result['learning rate']:g}",
                    "steps": result["steps"],
                    "s/step": f"{result['s/step']:.3f}",
                    "test bits/dim": f"{result['bits/dim']:.3f}",
                    "sampling 64, s": f"{result['sampling 64, s']:.2f}",
                }
            )
    print_table(rows)


if __name__ == "__main__":
    main()
