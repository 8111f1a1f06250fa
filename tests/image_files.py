"""Images in all formats that are read."""

import io
import pickle

import datasets
import numpy as np
from PIL import Image


def picture(value, size=(12, 9), mode="RGB"):
    """A picture of one grey, which says which one it is, whatever it is scaled to."""
    return Image.new("L", size, value).convert(mode)


def encode(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def make_folder(root, counts=(("train", 20), ("test", 6)), classes=("a", "b")):
    for split, count in counts:
        for index in range(count):
            folder = root / split / classes[index % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            picture(10 * index).save(folder / f"{index:03d}.png")
    return root


def make_rows(counts=(("train", 20), ("test", 6))):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {
                    "image": [
                        {"bytes": encode(picture(10 * i)), "path": None} for i in range(n)
                    ],
                    "label": [i % 2 for i in range(n)],
                },
                features,
            )
            for split, n in counts
        }
    )


def make_parquet(root):
    root.mkdir()
    for split, rows in make_rows().items():
        rows.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def make_arrow(root):
    make_rows().save_to_disk(root)
    return root


def make_cifar(root):
    root.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)]
    for start, name, count in [
        *((4 * i, n, 4) for i, n in enumerate(names)),
        (0, "test_batch", 6),
    ]:
        values = 10 * np.arange(start, start + count, dtype=np.uint8)
        data = np.repeat(values[:, None], 3072, 1)
        batch = {b"data": data, b"labels": [(start + i) % 2 for i in range(count)]}
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    return root


def make_npz(root):
    root.mkdir()
    for name, start, count in [
        *((f"train_data_batch_{i}", 2 * (i - 1), 2) for i in range(1, 11)),
        ("val_data", 0, 6),
    ]:
        values = 10 * np.arange(start, start + count, dtype=np.uint8)
        labels = np.arange(start, start + count) % 2 + 1
        np.savez(root / f"{name}.npz", data=np.repeat(values[:, None], 3072, 1), labels=labels)
    return root


FORMATS = {
    "imagefolder": make_folder,
    "parquet": make_parquet,
    "arrow": make_arrow,
    "cifar": make_cifar,
    "npz": make_npz,
}


RNG = np.random.default_rng(0)


def random_image(width, height, mode="RGB"):
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "CMYK": 4}[mode]
    pixels = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())
