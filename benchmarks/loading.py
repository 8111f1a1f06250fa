"""Images read per second, against those that a MixerFlow is trained with.

Images per second that one process reads, with all that belongs to it: decoding, resizing,
random crops, mirroring, seeds, batches of 64. Against it stand the images per second that the
MixerFlow of `photos.yaml` is trained with, on all threads. The images are patches of the ten
photographs, written in each format to a temporary folder; `large JPEG` are crops of 500 x 375
pixels, the usual size in ImageNet, that are brought to 64 x 64, and the same MixerFlow of such
images, with patches of 8 x 8; they come once more as PNG, scaled beforehand.

    python benchmarks/loading.py
"""

import argparse
import itertools
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import print_table, write_json
from PIL import Image

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, ImageDataModule, Images, Photos
from mixer_bijectors.train.data.bundled import grid_patches, load_photos
from mixer_bijectors.train.data.decode import resize

BATCH = 64
Patches = np.ndarray[Any, np.dtype[np.uint8]]


def make_images(folder: Path, patches: Patches, kind: str) -> None:
    for index, patch in enumerate(patches):
        Image.fromarray(patch).save(folder / f"{index}.{kind}")


def make_parquet(folder: Path, patches: Patches) -> None:
    make_images(folder, patches, "png")
    images = [{"bytes": p.read_bytes(), "path": p.name} for p in sorted(folder.iterdir())]
    for path in folder.iterdir():
        path.unlink()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features).to_parquet(folder / "all.parquet")


def make_pickles(folder: Path, patches: Patches) -> None:
    rows = patches.transpose(0, 3, 1, 2).reshape(len(patches), -1)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = pickle.dumps({b"data": rows, b"labels": [0] * len(rows)}, protocol=2)
        (folder / name).write_bytes(content)


def make_large(folder: Path, patches: Patches) -> None:
    photos = [p for p in load_photos() if p.shape[1] >= 375 and p.shape[2] >= 500]
    for index in range(200):
        photo = photos[index % len(photos)]
        top = index * 7 % (photo.shape[1] - 374)
        left = index * 13 % (photo.shape[2] - 499)
        crop = photo[:, top : top + 375, left : left + 500].permute(1, 2, 0).numpy()
        Image.fromarray(crop).save(folder / f"{index}.jpg", quality=90)


def make_scaled(folder: Path, patches: Patches) -> None:
    """Photographs that were scaled to 64 x 64 once beforehand."""
    make_large(folder, patches)
    for path in sorted(folder.iterdir()):
        pixels = resize(Image.open(path), (64, 64), "crop")
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path.with_suffix(".png"))
        path.unlink()


def read(data: ImageDataModule, seconds: float) -> float:
    """Images per second of training batches."""
    data.setup("fit")
    loader = data.loader("train", train=True)

    def batches() -> Any:
        for epoch in itertools.count():
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            yield from loader

    stream = batches()
    next(stream)
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        images += len(next(stream).images)
    return images / elapsed


def train(size: int, seconds: float) -> float:
    """Images per second that the MixerFlow of photos.yaml takes, with 8 x 8 patches in all."""
    torch.manual_seed(0)
    sizes = ((3, size, size), size // 8, 4)
    flow = mb.MixerFlow(*sizes, hidden_features=64, num_blocks=1, shift_every=2)
    module = DensityEstimation(flow)
    batch = next(iter(Photos(size, BATCH).loader("train", train=True)))
    optimizer = torch.optim.AdamW(flow.parameters(), 1e-3)
    steps, start = -3, time.perf_counter()
    while steps <= 0 or time.perf_counter() - start < seconds:
        x, _ = module.prepare(batch)
        loss = flow.forward_kld(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps == 0:
            start = time.perf_counter()
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()

    patches = grid_patches(load_photos(), 32, "test").permute(0, 2, 3, 1).numpy()
    small: dict[str, Any] = {"image_shape": (3, 32, 32), "flip": True, "val_split": 0.1}
    large = small | {"image_shape": (3, 64, 64), "random_crop": True}
    makers: dict[str, tuple[Callable[[Path, Patches], None], dict[str, Any]]] = {
        "folder of PNG": (lambda f, p: make_images(f, p, "png"), small | {"test_split": 0.1}),
        "folder of JPEG": (lambda f, p: make_images(f, p, "jpg"), small | {"test_split": 0.1}),
        "parquet of PNG": (make_parquet, small | {"test_split": 0.1}),
        "CIFAR's pickles": (make_pickles, small),
        "folder of large JPEG": (make_large, large | {"test_split": 0.1}),
        "large JPEG, scaled once": (make_scaled, large | {"test_split": 0.1}),
    }
    consumed = {size: train(size, arguments.seconds) for size in (32, 64)}
    rates = {"photos": read(Photos(32, BATCH), arguments.seconds)}
    for name, (make, options) in makers.items():
        with tempfile.TemporaryDirectory() as folder:
            datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
            root = Path(folder) / "data"
            root.mkdir()
            make(root, patches)
            rates[name] = read(
                Images(str(root), batch_size=BATCH, **options), arguments.seconds
            )
    rows = [
        {
            "data": name,
            "images/s, one reader": round(rate),
            "MixerFlow takes": round(consumed[64 if "large" in name else 32]),
            "ratio": f"{rate / consumed[64 if 'large' in name else 32]:.1f}",
        }
        for name, rate in rates.items()
    ]
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
