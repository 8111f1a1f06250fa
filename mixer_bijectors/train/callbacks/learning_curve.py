"""Bits per dimension of a run over its steps, as a figure."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

__all__ = ["learning_curve"]


def learning_curve(metrics: Path, test: float | None = None) -> Figure:
    """Bits per dimension of training, with their running mean, of validation and of the test.

    Args:
        metrics: the log of the run, `metrics.csv`.
        test: the result of the test, drawn as a line, if there is one.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values: list[float] = [] if test is None else [test]
    for split in ("train", "val"):
        name = f"{split}/bits_per_dim"
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if not points:
            continue
        steps, bits = np.array(points).T
        values += bits.tolist()
        if split == "val":
            axis.plot(steps, bits, marker="o", color="C1", label="validation")
            continue
        axis.plot(steps, bits, color="C0", alpha=0.3)
        window = max(1, len(bits) // 20)
        mean = np.convolve(bits, np.full(window, 1 / window), "valid")
        label = "training" if window == 1 else f"training, mean of {window} logged steps"
        axis.plot(steps[window - 1 :], mean, color="C0", label=label)
    if test is not None:
        axis.axhline(test, linestyle="--", color="C2", label=f"test {test:.3f}")
    if values:
        # The first steps are far above everything that one wants to see.
        axis.set_ylim(min(values) - 0.1, sorted(values)[int(0.95 * (len(values) - 1))] + 0.1)
        axis.legend()
    folder = metrics.resolve().parent
    axis.set(
        title=f"{folder.parent.name}/{folder.name}", xlabel="step", ylabel="bits per dimension"
    )
    axis.grid(alpha=0.3)
    return figure
