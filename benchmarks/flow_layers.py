"""MixerFlows with different inner flows at equal cost, on photographs and on digits.

Photographs at 32 x 32 as in density.py (every fourth test patch, as exact traces take long),
and the digits of scikit-learn at 8 x 8, split at random once into 1200 for training, 300 for
validation and 297 for testing. One model for each inner flow, two layers each, on one core, of
which only the time of the process counts; learning rates are searched as in `image_sets.py`,
until the best of the short runs is neither the largest nor the smallest.

    python benchmarks/flow_layers.py --budget 60 --json flow_layers.json

`--only` picks data. Runs that the JSON file already holds are not run again.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import normflows as nf
import torch
from common import Runs, fitting_parser, print_table
from density import BATCH
from embeddings import OneCore
from image_sets import best_runs
from sklearn.datasets import load_digits
from torch import Tensor

import mixer_bijectors as mb

PRESETS: dict[str, Callable[..., mb.MixerFlow]] = {
    "affine": partial(mb.presets.affine, hidden_features=48, num_blocks=1),
    "spline": partial(mb.presets.spline, hidden_features=48, num_blocks=1),
    "KAN net": partial(mb.presets.kan, hidden_features=48),
    "KANLayer": mb.presets.kan_layer,
    "MAF hybrid": partial(mb.presets.maf_hybrid, hidden_features=48, num_blocks=1),
    "residual": partial(mb.presets.residual, hidden_features=48),
    "FFJORD": partial(mb.presets.ffjord, hidden_features=48, tol=1e-3),
}


class Photos(OneCore):
    """Photographs, with fewer test patches."""

    patch_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.splits["val"] = self.splits["val"][::4]
        self.splits["test"] = self.splits["test"][::4]


class Digits(OneCore):
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
    data: Photos | Digits, name: str, rate: float, budget: float, seed: int, split: str
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = PRESETS[name](data.shape, data.patch_size, 2, shift_every=2)
    # Power iterations keep the Lipschitz constants of residual flows below one.
    after_step = partial(nf.utils.update_lipschitz, model, 5) if name == "residual" else int
    steps, seconds = data.fit(model, rate, budget, after_step=after_step)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning rate": rate,
        "steps": steps,
        "s/step": seconds,
        **data.results(model, split),
    }
    if split == "test":
        model.eval()
        start = time.perf_counter()
        with torch.no_grad():
            model.sample(64)
        result["sampling 64, s"] = time.perf_counter() - start
    return result


DATA: dict[str, Callable[[], Photos | Digits]] = {"photos": Photos, "digits": Digits}


def main() -> None:
    parser = fitting_parser(__doc__, budget=60)
    parser.add_argument("--only", nargs="+", default=list(DATA), help="data to run on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    search = arguments.search or arguments.budget / 5
    runs = Runs(arguments.json)

    def cached(
        data: Photos | Digits, place: str, rate: float, budget: float, seed: int, split: str
    ) -> dict[str, Any]:
        key = f"{place} | {split} | lr {rate:g} | {budget:g} s | seed {seed}"
        name = place.split(" | ")[1]
        return runs(key, partial(run, data, name, rate, budget, seed, split))

    rows = []
    for where in arguments.only:
        data = DATA[where]()
        for name in PRESETS:
            tried = partial(cached, data, f"{where} | {name}")
            result = best_runs(tried, search, arguments.budget, [0])[0]
            rows.append(
                {
                    "data": where,
                    "inner flow": name,
                    "parameters": f"{result['parameters']:,}",
                    "learning rate": f"{result['learning rate']:g}",
                    "steps": result["steps"],
                    "s/step": f"{result['s/step']:.3f}",
                    "test bits/dim": f"{result['test bits/dim']:.3f}",
                    "sampling 64, s": f"{result['sampling 64, s']:.2f}",
                }
            )
    print_table(rows)


if __name__ == "__main__":
    main()
