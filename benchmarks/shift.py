"""The shift layer of MixerFlow: what it is worth in bits, and in samples without a patch grid.

MixerFlows of four layers without shifts, with the frame of the paper, and with a grid that
rolls, before every layer, every second and every fourth, and `presets.local`. All are trained
for the same time of the process on one core, on the photographs that other packages bundle or
on those of a folder, split in columns, by the optimiser of `density.py`. Choose by the column
of validation.

The boundary artefact is the mean squared difference of neighbouring pixels across the borders
of patches over that inside patches, in samples: 1 where the grid does not show. The first row
has that of data. Beside it stands the same of the grid moved by half a patch.

    python benchmarks/shift.py --budget 120 --json shift.json
    python benchmarks/shift.py --budget 120 --json shift.json --photos data/kodak

`--only` picks rows, `--samples FOLDER` keeps sheets of samples there, and `--picture PATH` puts
them side by side. Runs that the JSON file already holds are not run again.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import Runs, fitting_parser, print_table
from embeddings import OneCore
from PIL import Image
from torch import Tensor

import mixer_bijectors as mb

PATCH, SAMPLES, SHOWN = 4, 512, 10

paper = partial(mb.MixerFlow, patch_size=PATCH, num_layers=4, hidden_features=48, num_blocks=1)
ROWS: dict[str, Callable[[], mb.MixerFlow]] = {
    "no shift": partial(paper, shift=None),
    "frame, every layer": partial(paper, shift_every=1),
    "frame, every 2": partial(paper, shift_every=2),
    "frame, every 4": partial(paper, shift_every=4),
    "cyclic, every layer": partial(paper, shift="cyclic", shift_every=1),
    "cyclic, every 2": partial(paper, shift="cyclic", shift_every=2),
    "cyclic, every 4": partial(paper, shift="cyclic", shift_every=4),
    "local": mb.presets.local,
    "local, no shift": partial(mb.presets.local, shift=None),
}


def read_photos(folder: str) -> list[Tensor]:
    """The photographs of a folder, each uint8 of shape (3, height, width)."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".png", ".jpg"))
    pixels = [np.array(Image.open(path).convert("RGB")) for path in paths]
    return [torch.from_numpy(photo).permute(2, 0, 1).contiguous() for photo in pixels]


def grid_ratio(images: Tensor, offset: int = 0) -> float:
    """Mean squared difference of neighbours across borders of patches over that inside."""
    across, inside = [], []
    for dim in (2, 3):
        squares = images.float().diff(dim=dim).square().transpose(dim, 0)
        steps = torch.arange(1, len(squares) + 1)
        border = (steps - offset) % PATCH == 0
        across.append(squares[border].mean())
        inside.append(squares[~border].mean())
    return float(sum(across) / sum(inside))


def artefacts(images: Tensor) -> dict[str, float]:
    return {"grid": grid_ratio(images), "moved grid": grid_ratio(images, PATCH // 2)}


def fit(
    data: OneCore, name: str, rate: float, budget: float, seed: int, sheets: Path | None
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = ROWS[name]()
    steps, seconds = data.fit(model, rate, budget)
    result = {"parameters": sum(p.numel() for p in model.parameters()), "steps": steps}
    result["seconds per step"] = seconds
    for split in ("val", "test"):
        bits = data.evaluate(model, split)
        result[f"{split} bits/dim"] = bits if math.isfinite(bits) else math.inf
    model.eval()
    with torch.no_grad():
        drawn, _ = model.sample(SAMPLES, generator=torch.Generator().manual_seed(0))
    samples = mb.images.quantize(drawn)
    if sheets and seed == 0:
        save_sheet(sheets, name, samples)
    return result | artefacts(samples)


def save_sheet(folder: Path, name: str, images: Tensor) -> None:
    """Some images in a row."""
    folder.mkdir(parents=True, exist_ok=True)
    row = torch.cat(list(images[:SHOWN]), 2)
    Image.fromarray(row.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")


def draw(path: str, folder: Path, names: list[str]) -> None:
    """Sheets of samples below each other, with their names."""
    figure, axes = plt.subplots(len(names), figsize=(8, 0.65 * len(names)))
    for axis, name in zip(axes, names):
        axis.imshow(Image.open(folder / f"{name}.png"), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.subplots_adjust(hspace=0.05)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = fitting_parser(__doc__, budget=120)
    parser.add_argument("--photos", help="a folder of photographs in place of the bundled ones")
    parser.add_argument("--rate", type=float, default=1.6e-2, help="learning rate of all rows")
    parser.add_argument("--only", nargs="+", default=list(ROWS), help="rows to run")
    parser.add_argument("--samples", type=Path, help="a folder for sheets of samples")
    parser.add_argument("--picture", help="draw the sheets of seed 0 into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = OneCore(read_photos(arguments.photos) if arguments.photos else None)
    where = Path(arguments.photos).name if arguments.photos else "bundled"
    sheets = arguments.samples and arguments.samples / where
    runs = Runs(arguments.json)
    if sheets:
        test = data.splits["test"]
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
        save_sheet(sheets, "data", test[order])
    columns = ("parameters", "s/step", "val bits/dim", "test bits/dim", "over seeds")
    table: list[dict[str, Any]] = [{"model": "data"} | dict.fromkeys(columns, "")]
    table[0] |= {k: f"{v:.2f}" for k, v in artefacts(data.splits["test"]).items()}
    for name in arguments.only:
        results = []
        for seed in arguments.seeds:
            key = f"{where} | {name} | lr {arguments.rate} | {arguments.budget:g} s"
            run = partial(fit, data, name, arguments.rate, arguments.budget, seed, sheets)
            results.append(runs(f"{key} | seed {seed}", run))
        tests = [result["test bits/dim"] for result in results]
        row = {"model": name, "parameters": f"{results[0]['parameters']:,}"}
        row["s/step"] = f"{mean(result['seconds per step'] for result in results):.3f}"
        row["val bits/dim"] = f"{mean(result['val bits/dim'] for result in results):.3f}"
        row["test bits/dim"] = f"{mean(tests):.3f}"
        row["over seeds"] = f"{min(tests):.3f} to {max(tests):.3f}" if len(tests) > 1 else ""
        for column in ("grid", "moved grid"):
            row[column] = f"{mean(result[column] for result in results):.2f}"
        table.append(row)
    print_table(table)
    if arguments.picture and sheets:
        draw(arguments.picture, sheets, ["data", *arguments.only])


if __name__ == "__main__":
    main()
