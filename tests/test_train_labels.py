"""Labels of batches as models take them."""

import numpy as np
import pytest
from commands import FLOW, QUIET, call, task
from tiny_runs import CONDITIONAL, IMAGES, Given, fit, make_trainer, write_images

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation


def test_images_without_labels_are_told_to_be_of_the_null_class(tmp_path):
    flow = mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0, hidden_features=8, num_classes=3)
    trainer = make_trainer(default_root_dir=tmp_path)
    images = Given((255 * IMAGES).byte())
    with pytest.warns(UserWarning, match="have no labels and get -1, the null class"):
        trainer.test(DensityEstimation(flow), datamodule=images)


def write_classes(folder, *names):
    """Images of classes of their own, in both splits."""
    for split in ("train", "test"):
        for name in names:
            write_images(folder / split / name, int(name[1:]))
    return folder


CLASSES = [
    *(CONDITIONAL[:-4]),
    *("--data", "mixer_bijectors.train.Images", "--data.init_args.batch_size", "2"),
    *("--data.init_args.image_shape", "[1, 8, 8]"),
]


def test_classes_are_those_of_the_fit_by_their_names(tmp_path):
    path = "--data.init_args.path"
    both = write_classes(tmp_path / "both", "n01", "n02")
    only = write_classes(tmp_path / "only", "n02")
    three = write_classes(tmp_path / "three", "n00", "n01", "n02")
    checkpoint = fit(tmp_path / "run", *CLASSES, f"{FLOW}num_classes", "2", path, both)
    for name, folder in (("both", both), ("only", only)):
        task("embed", checkpoint, tmp_path / f"{name}.npz", path, folder)
    want, found = (np.load(tmp_path / f"{name}.npz") for name in ("both", "only"))
    assert found["labels"].tolist() == [1] * 5
    of = want["labels"] == 1
    assert np.allclose(found["embeddings"], want["embeddings"][of], atol=1e-5)
    told = "not trained on the class n00, but on n01, n02"
    assert told in task("score", checkpoint, tmp_path / "s.csv", path, three, fails=True)
    assert told in call("test", "--ckpt_path", checkpoint, *QUIET, path, three, fails=True)
    again = ("fit", *QUIET, *CLASSES, f"{FLOW}num_classes", "2", path, three)
    root = ("--trainer.default_root_dir", tmp_path / "more", "--trainer.max_steps", 8)
    assert told in call(*again, *root, "--ckpt_path", checkpoint, fails=True)
