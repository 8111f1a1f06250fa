"""Anomaly detection by bits per dimension, by their ratio to a file, and by typicality.

MixerFlows are trained on photographs (as in density.py) and on digits of MNIST (as in
embeddings.py), and asked to tell test images of these from images of other kinds, most of them
simpler. The AUROC is how likely an image from outside scores above one from inside: by bits per
dimension; by what is left of them beyond the length of a lossless file of the image (`ratio`);
by their distance from the mean of validation images (`typicality`); see
`mixer_bijectors.train.tasks.anomaly`. Learning rates are the best of four by validation bits
per dimension after a short run.

    python benchmarks/anomaly.py --budget 60 --seeds 0 1 2 --json anomaly.json

Runs that the JSON file already holds are not run again.
"""

import math
import string
from collections.abc import Callable, Iterable
from functools import partial
from importlib.resources import files
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from common import Runs, fitting_parser, print_table
from density import BATCH, LEARNING_RATES, SIZE, Experiment
from density import mixer_flow as photo_flow
from embeddings import DATA, OneCore
from embeddings import mixer_flow as digit_flow
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from mixer_bijectors.train.tasks.anomaly import anomaly_scores, auroc, complexity

TEXTURES = ("brick.png", "grass.png", "gravel.png")
PAGES = ("page.png", "text.png")
FONTS = (
    *(f"DejaVu{kind}" for kind in ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "Serif")),
    *(f"DejaVuSerif-{kind}" for kind in ("Bold", "Italic", "BoldItalic")),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
    *("cmr10", "cmss10", "cmtt10", "cmti10", "cmb10"),
)
LETTER_SIZE = 20  # in pixels, as that of MNIST's digits


def stack(pictures: Iterable[Image.Image]) -> Tensor:
    """Pictures of one size as uint8 (pictures, channels, height, width)."""
    pixels = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))
    return pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)


def patches(names: Iterable[str], size: int) -> Tensor:
    """Grey pictures of scikit-image, cut into patches."""
    cut = []
    for name in names:
        with (files("skimage.data") / name).open("rb") as file:
            pixels = stack([Image.open(file).convert("L")])
        cut.append(
            pixels.unfold(2, size, size).unfold(3, size, size).reshape(-1, 1, size, size)
        )
    return torch.cat(cut)


def blur(images: Tensor, radius: float = 1.0) -> Tensor:
    pixels = images.permute(0, 2, 3, 1).squeeze(3).numpy()
    kernel = ImageFilter.GaussianBlur(radius)
    return stack(Image.fromarray(image).filter(kernel) for image in pixels)


def flatten(images: Tensor) -> Tensor:
    """Images of one colour, the mean of each."""
    return images.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(images)


def colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def letters(size: int) -> Tensor:
    """Letters in many fonts, white on black."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pictures = []
    for name, letter in product(FONTS, string.ascii_letters):
        picture = Image.new("L", (size, size))
        font = ImageFont.truetype(folder / f"{name}.ttf", LETTER_SIZE)
        middle = (size / 2, size / 2)
        ImageDraw.Draw(picture).text(middle, letter, fill=255, font=font, anchor="mm")
        pictures.append(picture)
    return stack(pictures)


def levels(data: Experiment, split: str) -> Tensor:
    return data.splits[split].to(torch.uint8)


def enlarge(images: Tensor, size: int, inner: int) -> Tensor:
    """Images scaled to `inner`, in the middle of a black square."""
    scaled = F.interpolate(images.float(), (inner, inner), mode="bilinear", antialias=True)
    return F.pad(scaled.round().to(torch.uint8), [(size - inner) // 2] * 4)


def photo_outsides(data: Experiment) -> dict[str, Tensor]:
    inside, digits = levels(data, "test"), levels(DATA["mnist5k"](), "test")
    return {
        "brick, grass, gravel": colour(patches(TEXTURES, SIZE)),
        "printed pages": colour(patches(PAGES, SIZE)),
        "digits of MNIST": colour(F.pad(digits, [2] * 4)),
        "the test patches, blurred": blur(inside),
        "the test patches, one colour each": flatten(inside),
    }


def digit_outsides(data: Experiment) -> dict[str, Tensor]:
    inside, size = levels(data, "test"), data.shape[1]
    small = levels(DATA["digits"](), "test") * 15  # of their 17 levels
    return {
        "brick, grass, gravel": patches(TEXTURES, size),
        "letters in print": letters(size),
        "digits of scikit-learn": enlarge(small, size, LETTER_SIZE),
        "the test digits, blurred": blur(inside),
        "the test digits, a quarter as bright": inside // 4,
    }


Build = Callable[[Any], Any]
Outsides = Callable[[Experiment], dict[str, Tensor]]
MODELS: dict[str, tuple[Callable[[], Experiment], Build, Outsides]] = {
    "photographs": (OneCore, lambda data: photo_flow(4, 48), photo_outsides),
    "MNIST": (
        DATA["mnist5k"],
        partial(digit_flow, num_layers=4, hidden_features=64),
        digit_outsides,
    ),
}


@torch.no_grad()
def bits_of(data: Experiment, model: Any, images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    batches = images.split(BATCH)
    return torch.cat([data.bits(model, data.prepare(x, generator=generator)) for x in batches])


def fit(data: Experiment, build: Build, rate: float, budget: float, seed: int) -> Any:
    """A model, and what training came to."""
    torch.manual_seed(seed)
    model = build(data)
    steps, _ = data.fit(model, rate, budget)
    bits = data.evaluate(model, "val")
    about = {"steps": steps, "val bits/dim": bits if math.isfinite(bits) else math.inf}
    return model.eval(), about


def measure(
    data: Experiment, model: Any, typical: float, outsides: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Bits, complexity and AUROCs of images from outside, beside those from inside."""

    def score(images: Tensor) -> dict[str, Tensor]:
        sizes = complexity(images)
        return anomaly_scores(bits_of(data, model, images), sizes, typical) | {"size": sizes}

    inside = score(levels(data, "test"))
    result = {"": {name: float(inside[name].mean()) for name in ("bits_per_dim", "size")}}
    for name, images in outsides.items():
        outside = score(images)
        result[name] = {key: float(outside[key].mean()) for key in ("bits_per_dim", "size")}
        for key in ("bits_per_dim", "ratio", "typicality"):
            result[name][f"AUROC {key}"] = auroc(inside[key], outside[key])
    return result


def main() -> None:
    parser = fitting_parser(__doc__, budget=60)
    arguments = parser.parse_args()
    search = arguments.search or arguments.budget / 5
    runs = Runs(arguments.json)
    torch.set_num_threads(1)

    def tests(name: str) -> list[dict[str, Any]]:
        make, build, find = MODELS[name]
        data = make()
        outsides = find(data)

        def attempt(rate: float) -> dict[str, Any]:
            return fit(data, build, rate, search, 0)[1]

        def run(rate: float, seed: int) -> dict[str, Any]:
            model, about = fit(data, build, rate, arguments.budget, seed)
            return about | {"scores": measure(data, model, about["val bits/dim"], outsides)}

        tries = {
            rate: runs(f"{name} | lr {rate} | {search:g} s", partial(attempt, rate))
            for rate in LEARNING_RATES
        }
        for rate in sorted(tries, key=lambda rate: tries[rate]["val bits/dim"]):
            results = [
                runs(
                    f"{name} | lr {rate} | {arguments.budget:g} s | seed {seed} | scores",
                    partial(run, rate, seed),
                )
                for seed in arguments.seeds
            ]
            if all(math.isfinite(result["val bits/dim"]) for result in results):
                break
        return results

    table = []
    for name in MODELS:
        results = [result["scores"] for result in tests(name)]

        def average(outside: str, key: str, results: list[Any] = results) -> float:
            return mean(scores[outside][key] for scores in results)

        for outside in results[0]:
            row = {
                "trained on": name,
                "images": outside or "its test images",
                "file, bits/dim": f"{average(outside, 'size'):.2f}",
                "bits/dim": f"{average(outside, 'bits_per_dim'):.2f}",
            }
            for key in ("bits_per_dim", "ratio", "typicality"):
                column = f"AUROC by {key.replace('_per_', '/')}"
                row[column] = f"{average(outside, f'AUROC {key}'):.3f}" if outside else ""
            table.append(row)
    print_table(table)


if __name__ == "__main__":
    main()
