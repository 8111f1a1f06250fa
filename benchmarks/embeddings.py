"""Accuracy of a linear classifier of MixerFlow's and Glow's embeddings, and of pixels.

Digits of MNIST and of scikit-learn, split as the data modules of `train` split them. Each flow
is trained without labels for the same time on one core, of which only the time of the process
counts, by AdamW with warm-up, a cosine over that time and gradient clipping. Of both flows two
sizes are tried at four learning rates each, and the best by validation bits per dimension after
a short run is trained in full, or where that then diverges, the next best. Embeddings are all
latents, in Glow those of all levels, of images without noise, each level at its middle. The
classifier is that of `train.tasks.probe.linear_probe`, which chooses its regularisation on
training images; test images are looked at once.

    python benchmarks/embeddings.py --budget 60 --seeds 0 1 2 --json embeddings.json

`--only` picks data. Runs that the JSON file already holds are not run again.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch
from common import Runs, fitting_parser, print_table
from density import BATCH, Experiment, Glow
from torch import Tensor

import mixer_bijectors as mb
from mixer_bijectors.train import Digits, ImageDataModule, MNIST5k
from mixer_bijectors.train.tasks.probe import linear_probe

LEARNING_RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
DIVERGED = 0.2  # how much worse than its short run, in bits/dim, a full run must not be


class OneCore(Experiment):
    """Budgets in seconds of the process: what else runs on a shared core counts for no side."""

    def clock(self) -> float:
        return time.process_time()


class Labelled(OneCore):
    """Images with labels, which a data module splits.

    Args:
        module: where images come from.
        patch_size: of a MixerFlow for them.
        levels: how many levels of grey they have, spread over those of 8 bits.
    """

    def __init__(self, module: ImageDataModule, patch_size: int, levels: int = 256) -> None:
        self.patch_size = patch_size
        self.levels = levels
        self.splits, self.labels = {}, {}
        for split in ("train", "val", "test"):
            batches = list(module.loader(split))
            images = torch.cat([batch.images for batch in batches]).float()
            self.splits[split] = (images * ((levels - 1) / 255)).round()
            self.labels[split] = torch.cat([batch.labels for batch in batches])
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)

    def draw(self) -> tuple[Tensor, Tensor]:
        """A batch of training images and their labels."""
        chosen = torch.randint(len(self.labels["train"]), (BATCH,))
        return self.prepare(self.splits["train"][chosen]), self.labels["train"][chosen]

    def batch(self, permute: bool = False) -> Tensor:
        return self.draw()[0]

    def prepare(
        self, x: Tensor, permute: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.scale(x + torch.rand(x.shape, generator=generator))

    def scale(self, x: Tensor) -> Tensor:
        return x * (2 / self.levels) - 1

    def bits(self, model: Any, x: Tensor) -> Tensor:
        return super().bits(model, x) + math.log2(self.levels / 256)

    def middles(self, split: str) -> Tensor:
        """Images of a split without noise."""
        return self.scale(self.splits[split] + 0.5)

    @torch.no_grad()
    def probe(self, embed: Callable[[Tensor], Tensor]) -> float:
        """Test accuracy of a linear classifier of embeddings."""
        features = {
            split: torch.cat([embed(x) for x in self.middles(split).split(BATCH)]).numpy()
            for split in ("train", "test")
        }
        labels = {split: self.labels[split].numpy() for split in features}
        return linear_probe(*((features[split], labels[split]) for split in features))


def mixer_flow(data: Labelled, num_layers: int, hidden_features: int) -> mb.MixerFlow:
    return mb.MixerFlow(
        data.shape,
        data.patch_size,
        num_layers,
        hidden_features=hidden_features,
        num_blocks=1,
        shift_every=2,
    )


def glow(data: Labelled, depth: int, hidden_channels: int) -> Glow:
    return Glow(depth, hidden_channels, levels=2, shape=data.shape)


DATA: dict[str, Callable[[], Labelled]] = {
    "mnist5k": lambda: Labelled(MNIST5k(), patch_size=4),
    "digits": lambda: Labelled(Digits(), patch_size=2, levels=17),
}
SIDES: dict[str, dict[str, Callable[[Labelled], Any]]] = {
    "Glow": {
        "K 4, hidden 64": partial(glow, depth=4, hidden_channels=64),
        "K 8, hidden 64": partial(glow, depth=8, hidden_channels=64),
    },
    "MixerFlow": {
        "4 layers, hidden 64": partial(mixer_flow, num_layers=4, hidden_features=64),
        "6 layers, hidden 128": partial(mixer_flow, num_layers=6, hidden_features=128),
    },
}


def fit(
    data: Labelled,
    build: Callable[[Labelled], Any],
    rate: float,
    budget: float,
    seed: int,
    probe: bool,
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = build(data)
    steps, seconds = data.fit(model, rate, budget)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning rate": rate,
        "steps": steps,
        "seconds per step": seconds,
    }
    for split in ("val", "test") if probe else ("val",):
        bits = data.evaluate(model, split)
        result[f"{split} bits/dim"] = bits if math.isfinite(bits) else math.inf
    # What has diverged has no embedding.
    if probe and math.isfinite(result["val bits/dim"]):
        result["accuracy"] = data.probe(model.eval().embed)
    return result


def probe_pixels(data: Labelled) -> dict[str, Any]:
    return {"accuracy": data.probe(partial(torch.flatten, start_dim=1))}


def main() -> None:
    parser = fitting_parser(__doc__, budget=60)
    parser.add_argument("--only", nargs="+", default=list(DATA), help="data to run on")
    arguments = parser.parse_args()
    search = arguments.search or arguments.budget / 5
    runs = Runs(arguments.json)
    torch.set_num_threads(1)

    def tests(name: str, data: Labelled, side: str) -> tuple[str, list[dict[str, Any]]]:
        def run(size: str, rate: float, budget: float, seed: int, probe: bool) -> Any:
            key = f"{name} | {side} {size} | lr {rate} | {budget:g} s | seed {seed}"
            key += " | probe" if probe else ""
            return runs(key, partial(fit, data, SIDES[side][size], rate, budget, seed, probe))

        tries = {
            (size, rate): run(size, rate, search, 0, False)["val bits/dim"]
            for size in SIDES[side]
            for rate in LEARNING_RATES
        }
        for size, rate in sorted(tries, key=lambda choice: tries[choice]):
            results = [run(size, rate, arguments.budget, s, True) for s in arguments.seeds]
            worst = max(result["val bits/dim"] for result in results)
            if worst < tries[size, rate] + DIVERGED:
                break
        return size, results

    table: list[dict[str, Any]] = []
    for name in arguments.only:
        data = DATA[name]()
        for side in SIDES:
            size, results = tests(name, data, side)
            accuracies = [result["accuracy"] for result in results]
            table.append(
                {
                    "data": name,
                    "features": f"{side} {size}",
                    "parameters": f"{results[0]['parameters']:,}",
                    "learning rate": f"{results[0]['learning rate']:g}",
                    "steps": round(mean(result["steps"] for result in results)),
                    "test bits/dim": f"{mean(r['test bits/dim'] for r in results):.3f}",
                    "test accuracy": f"{mean(accuracies):.4f}",
                    "over seeds": f"{min(accuracies):.4f} to {max(accuracies):.4f}",
                }
            )
        pixels = runs(f"{name} | pixels", partial(probe_pixels, data))
        table.append(
            {"data": name, "features": "pixels", "test accuracy": f"{pixels['accuracy']:.4f}"}
        )
    print_table(table)


if __name__ == "__main__":
    main()
