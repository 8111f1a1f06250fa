"""Folders and tables of small images, and what is read of them."""

import datasets
from image_files import encode, picture

from mixer_bijectors.train import Images

SHAPE = (1, 8, 8)


def make(root, *names):
    """Image files; the grey of each says which one it is."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(value, (8, 8), "L").save(path, "PNG")
    return root


def make_rows(labels, kind=None, start=0, key="label"):
    images = [
        {"bytes": encode(picture(start + i, (8, 8), "L")), "path": None}
        for i in range(len(labels))
    ]
    features = None
    if kind is not None:
        features = datasets.Features({"image": datasets.Image(), key: kind})
    return datasets.Dataset.from_dict({"image": images, key: labels}, features)


def read(data):
    """Grey and label of each image."""
    data.setup("fit")
    source = data.sources["test"]
    read = [source.read(index, None) for index in range(len(source))]
    return [int(pixels[0, 0, 0]) for pixels, _ in read], [label for _, label in read]


def everything(path):
    return Images(path, SHAPE, test_split="all")


AB = datasets.ClassLabel(names=["a", "b"])
