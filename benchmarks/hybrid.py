"""Density and classifier in one: what the weight of the classifier costs and brings.

A `HybridClassifier` on the digits of MNIST, split as the data module of `train` splits them,
for each of five weights of the cross-entropy: bits per dimension, accuracy and expected
calibration error (of 15 bins) of test images. Each is trained for the same time; its learning
rate is the best of four by its own loss on validation images after a short run. Beside them
stands the flow without a classifier, whose embedding a linear classifier reads afterwards.

    python benchmarks/hybrid.py --budget 60 --json hybrid.json --picture docs/images/hybrid.png

Runs that the JSON file already holds are not run again.
"""

import math
from functools import partial
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import Runs, fitting_parser, print_table
from density import BATCH
from embeddings import DATA, Labelled, mixer_flow
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

import mixer_bijectors as mb
from mixer_bijectors.train import MNIST5k

WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0)
LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
CLASSES = 10
ALONE = "none"


class Hybrid(Labelled):
    """Labelled images for a model that learns their labels as well."""

    def loss(self, model: Any, permute: bool = False) -> Tensor:
        loss: Tensor = model.loss(*self.draw())
        return loss

    @torch.no_grad()
    def measure(self, model: mb.HybridClassifier, split: str) -> dict[str, float]:
        """The loss and what it is made for, on a split."""
        model.eval()
        generator = torch.Generator().manual_seed(0)
        outputs = [
            model(self.prepare(x, generator=generator)) for x in self.splits[split].split(BATCH)
        ]
        log_prob, logits = (torch.cat(parts) for parts in zip(*outputs))
        labels = self.labels[split]
        loss = float(model.combine(log_prob, logits, labels))
        return {
            "loss": loss if math.isfinite(loss) else math.inf,
            "bits/dim": float(mb.images.bits_per_dim(log_prob, self.shape).mean()),
            "accuracy": float(multiclass_accuracy(logits, labels, CLASSES, average="micro")),
            "calibration error": float(multiclass_calibration_error(logits, labels, CLASSES)),
        }


def fit(data: Hybrid, weight: float, rate: float, budget: float, seed: int, split: str) -> Any:
    torch.manual_seed(seed)
    flow = mixer_flow(data, num_layers=4, hidden_features=64)
    model = mb.HybridClassifier(flow, CLASSES, weight=weight)
    steps, seconds = data.fit(model, rate, budget)
    about = {"learning rate": rate, "steps": steps, "seconds per step": seconds}
    return about | data.measure(model, split)


def fit_flow(data: Labelled, rate: float, budget: float, seed: int, split: str) -> Any:
    """The flow alone, and a linear classifier of its embedding."""
    torch.manual_seed(seed)
    flow = mixer_flow(data, num_layers=4, hidden_features=64)
    steps, seconds = data.fit(flow, rate, budget)
    bits = data.evaluate(flow, split)
    about = {"learning rate": rate, "steps": steps, "seconds per step": seconds}
    about |= {"loss": bits if math.isfinite(bits) else math.inf, "bits/dim": bits}
    return about | ({"accuracy": data.probe(flow.eval().embed)} if split == "test" else {})


def draw(rows: dict[str, list[dict[str, Any]]], path: str) -> None:
    """Accuracy against bits per dimension, and the calibration error, for each weight."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    weights = [name for name in rows if name != ALONE]
    values = {
        name: [mean(run[name] for run in rows[weight]) for weight in weights]
        for name in ("bits/dim", "accuracy", "calibration error")
    }
    left.plot(values["bits/dim"], values["accuracy"], "o-")
    for weight, *point in zip(weights, values["bits/dim"], values["accuracy"]):
        left.annotate(f"{float(weight):g}", point, xytext=(6, -10), textcoords="offset points")
    alone = [mean(run[name] for run in rows[ALONE]) for name in ("bits/dim", "accuracy")]
    left.plot(*alone, "s", color="grey", label="a flow, then a linear classifier")
    left.set(xlabel="test bits/dim", ylabel="test accuracy")
    left.margins(0.15)
    left.legend(loc="center right", bbox_to_anchor=(1, 0.25))
    right.semilogx([float(weight) for weight in weights], values["calibration error"], "o-")
    right.set(xlabel="weight of the cross-entropy", ylabel="expected calibration error")
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = fitting_parser(__doc__, budget=60)
    parser.add_argument("--picture", help="draw the figure into this file")
    arguments = parser.parse_args()
    search = arguments.search or arguments.budget / 5
    runs = Runs(arguments.json)
    torch.set_num_threads(1)
    data = Hybrid(MNIST5k(), patch_size=4)
    alone = DATA["mnist5k"]()

    def tests(name: str) -> list[dict[str, Any]]:
        build = partial(fit_flow, alone) if name == ALONE else partial(fit, data, float(name))

        def run(rate: float, budget: float, seed: int, split: str) -> dict[str, Any]:
            key = f"weight {name} | {split} | lr {rate} | {budget:g} s | seed {seed}"
            return runs(key, partial(build, rate, budget, seed, split))

        tries = {rate: run(rate, search, 0, "val")["loss"] for rate in LEARNING_RATES}
        for rate in sorted(tries, key=lambda rate: tries[rate]):
            results = [run(rate, arguments.budget, s, "test") for s in arguments.seeds]
            if all(math.isfinite(result["loss"]) for result in results):
                break
        return results

    rows = {name: tests(name) for name in (*map(str, WEIGHTS), ALONE)}
    table = []
    for name, results in rows.items():
        row = {"weight": name, "learning rate": f"{results[0]['learning rate']:g}"}
        row["steps"] = str(round(mean(result["steps"] for result in results)))
        for column, digits in (("bits/dim", 3), ("accuracy", 4), ("calibration error", 4)):
            if column in results[0]:
                row[f"test {column}"] = f"{mean(r[column] for r in results):.{digits}f}"
        table.append(row)
    print_table(table)
    if arguments.picture:
        draw(rows, arguments.picture)


if __name__ == "__main__":
    main()
