"""Speed at which models learn photographs: bits per dimension over the seconds of training.

The rows, data and optimiser of `density.py`, at the learning rates with which its rows end
best: the deeper Glow diverges at that of the others. Every few seconds a model is evaluated on
validation patches, while the clock, which is that of the process, stands. Writes the picture,
and the numbers as JSON:

    OMP_NUM_THREADS=1 python benchmarks/learning.py --seeds 0 1 2 --json learning.json

With a JSON file that holds the runs it only draws.
"""

import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import Runs, fitting_parser, print_table
from density import ROWS, Experiment
from matplotlib.figure import Figure

POINTS = 30
LEARNING_RATES = {
    "Glow K 4, hidden 64": 0.016,
    "Glow K 8, hidden 64": 0.008,
    "MixerFlow 4 layers, hidden 48": 0.016,
}
COLOURS = ("#8c8c8c", "#b08a5b", "#3b82d0")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "learning.png"


class Watched(Experiment):
    """Training that stops the clock to evaluate the model."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = 0.0

    def clock(self) -> float:
        return time.process_time() - self.paused

    def curve(self, name: str, budget: float, seed: int) -> dict[str, Any]:
        """Seconds of the process, and validation bits per dimension at each of them."""
        torch.manual_seed(seed)
        model = ROWS[name]()
        seconds: list[float] = []
        bits: list[float] = []
        start = self.clock()

        def look() -> None:
            now = self.clock()
            if now - start >= budget * (len(seconds) + 1) / POINTS:
                state = torch.get_rng_state()
                seconds.append(now - start)
                bits.append(self.evaluate(model, "val"))
                torch.set_rng_state(state)
                self.paused += self.clock() - now

        steps, _ = self.fit(model, LEARNING_RATES[name], budget, after_step=look)
        seconds.append(self.clock() - start)
        bits.append(self.evaluate(model, "val"))
        parameters = sum(p.numel() for p in model.parameters())
        return {"seconds": seconds, "bits": bits, "steps": steps, "parameters": parameters}


def at(runs: list[dict[str, Any]], second: float) -> list[float]:
    """The bits per dimension of each seed, seen nearest to that second."""
    seen = [zip(run["seconds"], run["bits"]) for run in runs]
    return [min(pairs, key=lambda pair: abs(pair[0] - second))[1] for pairs in seen]


def draw(curves: dict[str, list[dict[str, Any]]], budget: float, path: str | Path) -> None:
    """Means and spread over seeds, in colours for light and dark pages."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axis = figure.subplots()
    seconds = [budget * (point + 1) / POINTS for point in range(POINTS)]
    for (name, runs), color in zip(curves.items(), COLOURS):
        bits = [at(runs, second) for second in seconds]
        label = f"{name}: {mean(bits[-1]):.2f}"
        axis.plot(seconds, [mean(b) for b in bits], color=color, lw=2.4, label=label)
        low, high = [min(b) for b in bits], [max(b) for b in bits]
        axis.fill_between(seconds, low, high, color=color, alpha=0.25, lw=0)
    grey = "#808080"
    axis.set_ylim(top=max(mean(at(runs, budget / 10)) for runs in curves.values()))
    axis.set_xlabel("seconds of training on one CPU core", color=grey)
    axis.set_ylabel("bits per dimension", color=grey)
    axis.tick_params(colors=grey)
    axis.grid(color=grey, alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(grey)
    axis.legend(frameon=False, labelcolor=grey)
    figure.savefig(path, dpi=130, transparent=True)


def main() -> None:
    parser = fitting_parser(__doc__, budget=120)
    parser.add_argument("--picture", default=PICTURE, help="where to draw the curves")
    arguments = parser.parse_args()
    budget = arguments.budget
    runs = Runs(arguments.json)
    curves = {
        name: [
            runs(
                f"{name} | lr {rate} | {budget:g} s | seed {seed}",
                partial(Watched().curve, name, budget, seed),
            )
            for seed in arguments.seeds
        ]
        for name, rate in LEARNING_RATES.items()
    }
    quarters = [share * budget / 4 for share in (1, 2, 3, 4)]
    print_table(
        [
            {
                "model": name,
                "parameters": f"{rows[0]['parameters']:,}",
                "steps": round(mean(row["steps"] for row in rows)),
                **{f"after {s:g} s": f"{mean(at(rows, s)):.3f}" for s in quarters},
                "over seeds": " to ".join(f"{f(at(rows, budget)):.3f}" for f in (min, max)),
            }
            for name, rows in curves.items()
        ]
    )
    draw(curves, budget, arguments.picture)


if __name__ == "__main__":
    main()
