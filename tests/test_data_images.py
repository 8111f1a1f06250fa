"""Images in the formats that they come in."""

import os

import datasets
import lightning as L
import numpy as np
import pytest
import torch
from image_files import (
    FORMATS,
    encode,
    make_arrow,
    make_cifar,
    make_folder,
    make_parquet,
    make_rows,
    picture,
)
from PIL import Image

import mixer_bijectors as mb
from mixer_bijectors.train import DataError, DensityEstimation, Images
from mixer_bijectors.train.data.decode import resize
from mixer_bijectors.train.density_estimation import as_batch

pytestmark = pytest.mark.usefixtures("datasets_cache")


SHAPE = (3, 8, 8)


def read(data, split):
    """All images of a split by their grey, and their labels."""
    data.setup("fit")
    batches = [as_batch(batch) for batch in data.loader(split)]
    images = torch.cat([batch.images for batch in batches])
    labels = [batch.labels for batch in batches]
    return images, None if labels[0] is None else torch.cat(labels)


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form, tmp_path):
    data = Images(str(FORMATS[form](tmp_path / "data")), SHAPE, 5, val_split=0.2)
    data.prepare_data()
    greys = {}
    for split, count in (("train", 16), ("val", 4), ("test", 6)):
        images, labels = read(data, split)
        assert images.shape == (count, *SHAPE) and images.dtype == torch.uint8
        assert (images == images[:, :1, :1, :1]).all()
        greys[split] = images[:, 0, 0, 0] // 10
        assert torch.equal(labels, greys[split] % 2)
    assert sorted(greys["test"].tolist()) == list(range(6))
    together = torch.cat([greys["train"], greys["val"]])
    assert sorted(together.tolist()) == list(range(20)), "disjoint, and all of them"
    again = Images(data.path, SHAPE, 5, val_split=0.2)
    assert torch.equal(read(again, "val")[0], read(data, "val")[0])


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_single_file(form, tmp_path):
    if form == "parquet":
        path = make_parquet(tmp_path / "data") / "train-00000-of-00001.parquet"
    else:
        path = next((make_arrow(tmp_path / "data") / "train").glob("*.arrow"))
    data = Images(str(path), SHAPE, 5, val_split=0.1, test_split=0.2)
    assert [len(read(data, split)[0]) for split in ("train", "val", "test")] == [14, 2, 4]


def test_a_flat_folder_has_no_labels(tmp_path):
    for index in range(10):
        picture(index).save(tmp_path / f"{index}.png")
    data = Images(str(tmp_path), SHAPE, 5, val_split=0.1, test_split=0.2)
    images, labels = read(data, "train")
    assert len(images) == 7 and labels is None
    assert data.sources["test"].name(0).endswith(".png")


@pytest.mark.parametrize(
    ("counts", "train_split", "sizes"),
    [
        ([("train", 40)], "train", (34, 2, 4)),
        ([("train", 40), ("test", 6)], "train", (38, 2, 6)),
        ([("test", 40)], "test", (34, 2, 4)),
    ],
)
def test_a_tenth_is_held_out_where_there_is_no_test_split(counts, train_split, sizes, tmp_path):
    data = Images(make_folder(tmp_path, counts), SHAPE, 2, train_split=train_split)
    data.setup("fit")
    assert tuple(len(data.sources[split]) for split in ("train", "val", "test")) == sizes
    if len(counts) == 1:
        names = {source.name(i) for source in data.sources.values() for i in range(len(source))}
        assert len(names) == 40, "disjoint, and all of them"


def test_all_images_are_for_testing(tmp_path):
    data = Images(str(make_folder(tmp_path)), SHAPE, 5, test_split="all")
    images, _ = read(data, "test")
    assert len(images) == 26 and list(data.sources) == ["test"]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "validation", "test"),
        ("Train", "val", "TEST"),
        ("set/train", "set/dev", "set/testing"),
    ],
)
def test_splits_by_name(names, tmp_path):
    folder = make_folder(tmp_path / "data", zip(names, (6, 2, 2)))
    (folder / ".hidden").mkdir()
    data = Images(str(folder), SHAPE, 2, val_split="validation")
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        images, labels = read(data, split)
        assert len(images) == count and labels.bincount().tolist() == [count // 2] * 2


def test_classes_named_like_splits(tmp_path):
    folder = make_folder(tmp_path / "data", [("train", 10)], ("dev", "test-tube", "a"))
    make_folder(tmp_path / "flat", [(".", 12)], ("a-train", "cat"))
    data = Images(str(folder), SHAPE, 2, val_split=0.1, test_split=0.2)
    assert set(read(data, "train")[1].tolist()) == {0, 1, 2}
    data = Images(str(tmp_path / "flat"), SHAPE, 2, val_split=0.1, test_split=0.2)
    assert sum(len(read(data, split)[0]) for split in ("train", "val", "test")) == 12


def test_a_folder_is_searched_once(tmp_path, monkeypatch):
    searched = []
    scan = os.scandir

    def count(path):
        searched.append(os.path.relpath(path, tmp_path / "data"))
        return scan(path)

    monkeypatch.setattr(os, "scandir", count)
    data = Images(str(make_folder(tmp_path / "data")), SHAPE, 5)
    data.prepare_data()
    data.setup("fit")
    monkeypatch.undo()
    assert sorted(searched) == [
        ".",
        *(f"test{c}" for c in ("", "/a", "/b")),
        "train",
        "train/a",
        "train/b",
    ]


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return make_rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = Images("cifar10", SHAPE, 5, name="plain_text")
    assert len(read(data, "test")[0]) == 6
    assert asked == [("cifar10", "plain_text")]


SOURCES = {
    "palette": (lambda: picture(80).quantize(4), "PNG"),
    "greyscale": (lambda: picture(80, mode="L"), "PNG"),
    "RGBA": (lambda: picture(80, mode="RGBA"), "PNG"),
    "16-bit": (lambda: Image.fromarray(np.full((9, 12), 80 * 257, np.uint16)), "PNG"),
    "CMYK": (lambda: picture(80, mode="CMYK"), "JPEG"),
    "JPEG": (lambda: picture(80), "JPEG"),
    "WebP": (lambda: picture(80), "WEBP"),
    "one pixel": (lambda: picture(80, (1, 1)), "PNG"),
    "a strip": (lambda: picture(80, (300, 2)), "PNG"),
    "the right size": (lambda: picture(80, (8, 8)), "PNG"),
}


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_modes_and_sizes(source, channels, resize, tmp_path):
    make, kind = SOURCES[source]
    for index in range(4):
        (tmp_path / f"{index}.{kind.lower()}").write_bytes(encode(make(), kind))
    data = Images(
        str(tmp_path), (channels, 8, 8), 1, val_split=0.3, test_split=0.3, resize=resize
    )
    images, _ = read(data, "test")
    assert images.shape[1:] == (channels, 8, 8)
    assert (images.int() - 80).abs().max() <= 2


def test_images_may_be_scaled_once(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 37, 50, 3), dtype=np.uint8)
    for index, image in enumerate(noise):
        (tmp_path / "train" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "train" / "ab"[index % 2] / f"{index}.jpg")

    def scale(row):
        pixels = resize(row["image"].convert("RGB"), (8, 8), "crop")
        return {"image": pixels.transpose(1, 2, 0)}

    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "train"))
    rows.map(scale).save_to_disk(tmp_path / "scaled")
    for before, after in zip(
        *(
            read(Images(str(tmp_path / name), SHAPE, 2, test_split="all"), "test")
            for name in ("train", "scaled")
        )
    ):
        assert torch.equal(before, after)


def test_crops_are_random_in_training_alone(tmp_path):
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 8, 0)
    for index in range(60):
        Image.fromarray(ramp).save(tmp_path / f"{index}.png")
    data = Images(str(tmp_path), (1, 8, 8), 5, val_split=0.1, test_split=0.1, random_crop=True)
    data.setup("fit")
    lefts = {
        int(image.min()) for batch in data.loader("train", train=True) for image in batch.images
    }
    assert len(lefts) > 8
    assert {int(image.min()) for image in read(data, "test")[0]} == {80}


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "zero bytes": lambda content: b"",
    "no image": lambda content: b"not an image at all",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_damaged_images(damage, form, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), "JPEG")
    contents = [whole] * 10
    contents[3] = DAMAGE[damage](whole)
    folder = tmp_path / "data"
    folder.mkdir()
    if form == "imagefolder":
        for index, content in enumerate(contents):
            (folder / f"{index}.jpg").write_bytes(content)
    else:
        images = [{"bytes": content, "path": f"{i}.jpg"} for i, content in enumerate(contents)]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": images}, features).to_parquet(
            folder / "all.parquet"
        )
    with pytest.raises(DataError, match=r"image 3 \(.*3\.jpg\): .*; on_bad_image: skip leaves"):
        read(Images(str(folder), SHAPE, 4, test_split="all"), "test")
    data = Images(str(folder), SHAPE, 4, test_split="all", on_bad_image="skip")
    data.setup("fit")
    kept = [batch.indices[i] for batch in data.loader("test") for i in batch.kept]
    assert kept == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert data.datasets["test"].bad.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("classes", [0, 2])
def test_a_batch_of_bad_images_alone_counts_for_nothing(classes, tmp_path):
    folder = make_folder(tmp_path)
    for path in (folder / "test").rglob("00[45].png"):
        path.write_bytes(b"")
    torch.manual_seed(0)
    flow = mb.MixerFlow(SHAPE, 4, num_layers=1, hidden_features=4, num_classes=classes)
    data = Images(str(folder), SHAPE, 2, on_bad_image="skip")
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    (metrics,) = trainer.test(DensityEstimation(flow), datamodule=data, verbose=False)
    assert np.isfinite(metrics["test/bits_per_dim"])
    assert data.datasets["test"].bad.sum() == 2


def test_skipped_images_are_counted_at_the_end(tmp_path, capsys):
    folder = make_folder(tmp_path)
    (folder / "test" / "a" / "002.png").write_bytes(b"")
    data = Images(str(folder), SHAPE, 5, on_bad_image="skip")
    read(data, "test")
    data.teardown("fit")
    assert "could not be read, and were skipped: 1 of test" in capsys.readouterr().out


def test_labels_out_of_range(tmp_path):
    rows = make_rows()["train"].cast_column("label", datasets.Value("int64"))
    rows = rows.map(lambda row, i: {"label": 7 if i == 5 else 1}, with_indices=True)
    rows.to_parquet(tmp_path / "all.parquet")
    data = Images(str(tmp_path), SHAPE, 4, test_split="all")
    data.labels = range(-1, 3)
    with pytest.raises(DataError, match=r"image 5 .* has the label 7, but those of the model"):
        read(data, "test")


def write_text(root):
    (root / "a.txt").write_text("no image")
    return root


WRONG = {
    "an empty folder": (lambda root: root, {}, "holds no images"),
    "no images among its files": (write_text, {}, "holds no images"),
    "splits beside classes": (
        lambda root: make_folder(root, (("test", 2), ("dog", 2), ("cat", 2))),
        {},
        "has the folders test, which are splits, beside cat, dog; move these away or, if all",
    ),
    "an empty folder for a split": (
        lambda root: [make_folder(root), (root / "val").mkdir()][0],
        {"val_split": "validation"},
        "no split 'validation', but 'train', 'test'",
    ),
    "a missing folder": (lambda root: root / "none", {}, "there is no folder or file"),
    "no such split": (
        make_folder,
        {"test_split": "exam"},
        "no split 'exam', but 'train', 'test'",
    ),
    "cifar without a batch": (
        lambda root: [make_cifar(root / "c"), (root / "c" / "data_batch_3").unlink()][0],
        {},
        "missing data_batch_3",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_told_in_a_sentence(kind, tmp_path):
    make, options, message = WRONG[kind]
    data = Images(str(make(tmp_path)), SHAPE, **options)
    with pytest.raises(DataError, match=message) as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [["cat", "dog"], [[0, 1], [2]], [0.5, 1.5]])
def test_labels_that_are_no_numbers_of_classes_are_none(labels, tmp_path):
    images = [{"bytes": encode(picture(80)), "path": None}] * 2
    rows = {"image": images, "label": labels}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "all.parquet")
    images, labels = read(Images(str(tmp_path), SHAPE, 2, test_split="all"), "test")
    assert len(images) == 2 and labels is None


def test_no_column_of_images(tmp_path):
    datasets.Dataset.from_dict({"words": ["a", "b"]}).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(DataError, match="no column of images among words"):
        Images(str(tmp_path), SHAPE).setup("fit")


def test_an_interrupted_download(monkeypatch):
    def load(*_):
        raise ConnectionError("Read timed out\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match="downloaded from the hub: Read timed out; what has arr"
    ):
        Images("cifar10").prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (4, 8, 8)}, r"image_shape must be \(1 or 3, height, width\)"),
        ({"val_split": 1.5}, "val_split must be a name or from 0 to 1, got 1.5"),
        ({"val_split": "train"}, "val_split must not be 'train', the images that are trained"),
        (
            {"train_split": "x", "test_split": "x"},
            "test_split must not be 'x', the images that are trained",
        ),
        ({"resize": "stretch"}, "resize must be 'crop' or 'squash', got 'stretch'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Images("somewhere", **options)
