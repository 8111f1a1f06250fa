"""Exactness of the inverse of a trained 30-layer MixerFlow in float32.

Trains on photographs at 32 x 32 for some time, then takes all test patches to their latents and
back, in float32 and float64, and reports the largest difference on the scale of [-1, 1).

    python benchmarks/round_trip.py --budget 150
"""

import argparse

import torch
from common import print_table, write_json
from density import Experiment

import mixer_bijectors as mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=240, help="seconds of training")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    experiment = Experiment()
    model = mb.MixerFlow(num_layers=30, hidden_features=64, num_blocks=1)
    steps, _ = experiment.fit(model, arguments.learning_rate, arguments.budget)
    bits = experiment.evaluate(model, "test", permute=False)
    model.eval()
    rows = []
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        errors = []
        with torch.no_grad():
            for patches in experiment.splits["test"].split(64):
                x = mb.images.dequantize(patches, dtype=dtype)
                errors.append((model(model.inverse(x)) - x).abs().flatten(1).amax(1))
        error = torch.cat(errors)
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "largest error": f"{error.max().item():.1e}",
                "median over images": f"{error.median().item():.1e}",
                "steps": steps,
                "test bits/dim": f"{bits:.2f}",
            }
        )
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
