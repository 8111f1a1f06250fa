"""Density of photographs at equal wall clock: normflows' Glow, MixerFlow, TarFlow, Jet.

Photographs at 32 x 32 (see `mixer_bijectors.train.data.bundled`), batches of 64 random crops,
mirrored half of the time, for every row; one row after the other in one process, each trained
for the same time by AdamW with warm-up, a cosine over that time and gradient clipping. The
learning rate of each row is the best of four by validation bits per dimension after a short
run, or where the full run then diverges, the next best. Test patches come from columns of the
photographs that neither training nor validation touches.

    python benchmarks/density.py --budget 200 --json density.json

`--seeds 0 1 2` repeats the best Glow's row and all others, `--permute` repeats them with the
pixels of all images in one fixed random order, with the learning rates found without it.
`--only` picks rows. Runs that the JSON file already holds are not run again.

`--images data/cifar-10-batches-py` takes other images in place of the photographs, whatever
`mixer_bijectors.train.Images` reads, with a test split of their own; a twentieth of the
training images is for validation.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from random import Random
from statistics import mean
from typing import Any

import normflows as nf
import torch
from common import Runs, fitting_parser, print_table
from torch import Tensor, nn

import mixer_bijectors as mb
from mixer_bijectors.images import bits_per_dim, dequantize
from mixer_bijectors.train import Images
from mixer_bijectors.train.data.bundled import Crops, grid_patches, load_photos

SIZE, BATCH, WARMUP_STEPS, CLIP = 32, 64, 30, 1.0


class Glow(nf.MultiscaleFlow):
    """Glow as the examples of normflows build it."""

    def __init__(
        self,
        depth: int,
        hidden_channels: int,
        levels: int = 3,
        shape: tuple[int, int, int] = (3, SIZE, SIZE),
    ) -> None:
        bases, merges, flows = [], [], []
        for level in range(levels):
            channels = shape[0] * 2 ** (levels + 1 - level)
            blocks = [nf.flows.GlowBlock(channels, hidden_channels) for _ in range(depth)]
            flows.append([*blocks, nf.flows.Squeeze()])
            sides = [side // 2 ** (levels - level) for side in shape[1:]]
            if level > 0:
                merges.append(nf.flows.Merge())
                channels //= 2
            bases.append(nf.distributions.DiagGaussian((channels, *sides)))
        super().__init__(bases, flows, merges, class_cond=False)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().log_prob(x, y)

    def embed(self, x: Tensor) -> Tensor:
        """Latents of all levels, flattened and one after the other."""
        latents, _ = self.inverse_and_log_det(x)
        return torch.cat([z.flatten(1) for z in latents], 1)


def mixer_flow(num_layers: int, hidden_features: int) -> mb.MixerFlow:
    """A MixerFlow for a small budget: shallow nets, and every other layer shifted."""
    return mb.MixerFlow(
        num_layers=num_layers, hidden_features=hidden_features, num_blocks=1, shift_every=2
    )


def tar_flow(num_blocks: int, layers_per_block: int, channels: int) -> mb.TarFlow:
    return mb.TarFlow(
        (3, SIZE, SIZE),
        4,
        channels=channels,
        num_blocks=num_blocks,
        layers_per_block=layers_per_block,
    )


def hybrid(num_layers: int, layers_per_block: int, channels: int, last: bool) -> mb.ImageFlow:
    """MixerFlow's layers and one Transformer, which comes last or first, seen from the data."""
    attention = mb.TransformerAutoregressive(
        (SIZE // 4) ** 2, 48, channels=channels, num_layers=layers_per_block
    )
    *mixing, patchify, pixels = mixer_flow(num_layers, 64).flows
    layers = [attention, *mixing] if last else [*mixing, attention]
    return mb.ImageFlow.from_layers((3, SIZE, SIZE), 4, [*layers, patchify, pixels])


def jet(num_layers: int, channels: int) -> mb.Jet:
    return mb.Jet(
        (3, SIZE, SIZE), 4, num_layers=num_layers, channels=channels, layers_per_coupling=1
    )


LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
ROWS: dict[str, Callable[[], Any]] = {
    "Glow K 4, hidden 64": partial(Glow, 4, 64),
    "Glow K 4, hidden 128": partial(Glow, 4, 128),
    "Glow K 8, hidden 64": partial(Glow, 8, 64),
    "Glow K 8, hidden 128": partial(Glow, 8, 128),
    "MixerFlow 6 layers, hidden 128": partial(mixer_flow, 6, 128),
    "MixerFlow 4 layers, hidden 48": partial(mixer_flow, 4, 48),
    "local, 4 layers, hidden 64": mb.presets.local,
    "Jet 10 x 1, channels 64": partial(jet, 10, 64),
    "TarFlow 4 x 1, channels 64": partial(tar_flow, 4, 1, 64),
    "TarFlow 2 x 2, channels 128": partial(tar_flow, 2, 2, 128),
    "hybrid, attention last": partial(hybrid, 4, 1, 64, True),
    "hybrid, attention first": partial(hybrid, 4, 1, 64, False),
}


class Experiment:
    """The data, and a way to train a model on it for some time."""

    shape: tuple[int, int, int] = (3, SIZE, SIZE)
    batch_size = BATCH
    order = torch.randperm(SIZE**2, generator=torch.Generator().manual_seed(0))

    def __init__(self, photos: list[Tensor] | None = None, size: int = SIZE) -> None:
        photos = load_photos() if photos is None else photos
        self.shape = (3, size, size)
        self.crops = Crops(photos, size, self.batch_size)
        self.splits = {split: grid_patches(photos, size, split) for split in ("val", "test")}

    def clock(self) -> float:
        """Seconds, of which budgets are made."""
        return time.perf_counter()

    def batch(self, permute: bool = False) -> Tensor:
        random = Random(int(torch.randint(2**62, ())))
        crops = [self.crops.read(i, random)[0] for i in range(self.batch_size)]
        return self.prepare(torch.stack(crops), permute)

    def bits(self, model: Any, x: Tensor) -> Tensor:
        """Bits per dimension of each image."""
        return bits_per_dim(model.log_prob(x), self.shape)

    def loss(self, model: Any, permute: bool = False) -> Tensor:
        """The loss of training, on a new batch."""
        return self.bits(model, self.batch(permute)).mean()

    def prepare(
        self, x: Tensor, permute: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        if permute:
            x = x.flatten(2)[:, :, self.order].view_as(x)
        return dequantize(x, generator=generator)

    @torch.no_grad()
    def evaluate(self, model: Any, split: str, permute: bool = False) -> float:
        model.eval()
        generator = torch.Generator().manual_seed(0)
        bits = [
            self.bits(model, self.prepare(x, permute, generator))
            for x in self.splits[split].split(self.batch_size)
        ]
        model.train()
        return float(torch.cat(bits).mean())

    def fit(
        self,
        model: Any,
        learning_rate: float,
        budget: float,
        permute: bool = False,
        after_step: Callable[[], object] = lambda: None,
    ) -> tuple[int, float]:
        """Train for `budget` seconds; returns the steps done and the seconds for each."""
        with torch.no_grad():
            self.loss(model, permute)  # initialises ActNorm
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0)
        steps, start = 0, self.clock()
        while (elapsed := self.clock() - start) < budget:
            factor = 0.5 * (1 + math.cos(math.pi * elapsed / budget))
            factor *= min(1.0, (steps + 1) / WARMUP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor
            loss = self.loss(model, permute)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            after_step()
            steps += 1
        return steps, elapsed / steps

    def run(
        self,
        name: str,
        learning_rate: float,
        budget: float,
        seed: int,
        permute: bool,
        split: str,
    ) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = ROWS[name]()
        steps, seconds = self.fit(model, learning_rate, budget, permute)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "learning rate": learning_rate,
            "steps": steps,
            "seconds per step": seconds,
            **self.results(model, split, permute),
        }

    def results(self, model: Any, split: str, permute: bool = False) -> dict[str, float]:
        """Bits per dimension of a split, and those of validation, by which runs are chosen."""
        bits = {name: self.evaluate(model, name, permute) for name in {"val", split}}
        return {
            f"{name} bits/dim": value if math.isfinite(value) else math.inf
            for name, value in bits.items()
        }


class ImageExperiment(Experiment):
    """Training with the images of a dataset in place of photographs."""

    def __init__(self, path: str) -> None:
        data = Images(path, self.shape)
        data.setup("fit")
        self.splits = {
            split: torch.stack([source.read(i, None)[0] for i in range(len(source))])
            for split, source in data.sources.items()
        }

    def batch(self, permute: bool = False) -> Tensor:
        images = self.splits["train"]
        x = images[torch.randint(len(images), (BATCH,))]
        mirrored = torch.rand(BATCH, 1, 1, 1) < 0.5
        return self.prepare(torch.where(mirrored, x.flip(3), x), permute)


def main() -> None:
    parser = fitting_parser(__doc__, budget=200)
    parser.add_argument("--images", help="a dataset to take in place of the photographs")
    parser.add_argument("--permute", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(ROWS), help="rows to run")
    arguments = parser.parse_args()
    search = arguments.search or arguments.budget / 5

    experiment = ImageExperiment(arguments.images) if arguments.images else Experiment()
    runs = Runs(arguments.json)

    def run(
        name: str, rate: float, budget: float, seed: int, permute: bool, split: str
    ) -> dict[str, Any]:
        key = f"{name} | {split} | lr {rate} | {budget:g} s | seed {seed}"
        key += " | permuted" if permute else ""
        return runs(key, partial(experiment.run, name, rate, budget, seed, permute, split))

    def tests(name: str, seeds: list[int], permute: bool = False) -> list[dict[str, Any]]:
        tries = {
            rate: run(name, rate, search, 0, False, "val")["val bits/dim"]
            for rate in LEARNING_RATES
        }
        for rate in sorted(tries, key=lambda rate: tries[rate]):
            results = [run(name, rate, arguments.budget, s, permute, "test") for s in seeds]
            # A full run that ends far above the short one has diverged.
            worst = max(result["val bits/dim"] for result in results)
            if permute or worst < tries[rate] + 0.2:
                break
        return results

    def bits(results: list[dict[str, Any]]) -> float:
        return mean(result["test bits/dim"] for result in results)

    first = {name: tests(name, arguments.seeds[:1]) for name in arguments.only}
    glows = [name for name in first if name.startswith("Glow")]
    best_glow = min(glows, key=lambda name: bits(first[name]), default=None)
    shown = [name for name in first if name == best_glow or name not in glows]
    results = first | {name: tests(name, arguments.seeds) for name in shown}
    permuted = {n: tests(n, arguments.seeds, True) for n in shown} if arguments.permute else {}
    # Without a Glow, the first row is what others are held against.
    against = best_glow or shown[0]
    bits_against = bits(results[against])
    size_against = results[against][0]["parameters"]
    table: list[dict[str, Any]] = []
    for name, row in results.items():
        spread = [result["test bits/dim"] for result in row]
        table.append(
            {
                "model": name,
                "parameters": f"{row[0]['parameters']:,}",
                f"size / {against}": f"{row[0]['parameters'] / size_against:.2f}",
                "learning rate": f"{row[0]['learning rate']:g}",
                "steps": round(mean(r["steps"] for r in row)),
                "s/step": f"{mean(r['seconds per step'] for r in row):.2f}",
                "test bits/dim": f"{mean(spread):.3f}",
                "over seeds": f"{min(spread):.3f} to {max(spread):.3f}"
                if len(spread) > 1
                else "",
                f"against {against}": f"{mean(spread) - bits_against:+.3f}",
            }
        )
        if name in permuted:
            worse = bits(permuted[name])
            table[-1]["permuted"] = f"{worse:.3f}"
            table[-1]["degradation"] = f"{worse - mean(spread):+.3f}"
    if permuted:
        for entry in table:
            entry.setdefault("permuted", "")
            entry.setdefault("degradation", "")
    print_table(table)


if __name__ == "__main__":
    main()
