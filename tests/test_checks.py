"""Batches, labels and models that are refused or warned of."""

import pytest
import torch
from tiny_runs import IMAGES, Given, make_flow, make_trainer

import mixer_bijectors as mb
from mixer_bijectors.train import DataError, DensityEstimation

NOT_IMAGES = {
    "in [0, 1]": (IMAGES, "must be uint8 .* got torch.float32"),
    "floats up to 255": (255 * IMAGES, "must be uint8 .* got torch.float32"),
    "integers": ((255 * IMAGES).long(), "must be uint8 .* got torch.int64"),
    "without channels": ((255 * IMAGES).byte()[:, 0], r"got torch.uint8 of shape \(8, 8, 8\)"),
    "a dictionary": ({"image": IMAGES}, "or a pair of images and labels, got a dict"),
}


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_batches_of_anything_but_8_bit_images_are_refused(kind, tmp_path):
    batch, told = NOT_IMAGES[kind]
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    for run in (trainer.fit, trainer.validate, trainer.test):
        with pytest.raises(DataError, match=told):
            run(module, datamodule=Given(batch))


NOT_LABELS = {
    "floats": (torch.rand(8), r"got torch.float32 of shape \(8,\)"),
    "one-hot": (torch.eye(8).long(), r"got torch.int64 of shape \(8, 8\)"),
    "words": (["cat"] * 8, "got list"),
}


@pytest.mark.parametrize("kind", NOT_LABELS)
def test_labels_that_are_no_integers_are_refused_where_they_are_read(kind, tmp_path):
    labels, told = NOT_LABELS[kind]
    data = Given([(255 * IMAGES).byte(), labels])
    flow = mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0, hidden_features=8, num_classes=3)
    for reader in (flow, mb.HybridClassifier(make_flow(), 3, weight=1.0)):
        trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
        with pytest.raises(
            DataError, match=rf"labels must be integers of shape \(8,\), {told}"
        ):
            trainer.fit(DensityEstimation(reader), datamodule=data)
    make_trainer(max_steps=1, default_root_dir=tmp_path).fit(
        DensityEstimation(make_flow()), datamodule=data
    )


def test_images_without_a_bright_pixel_are_warned_of(tmp_path):
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="no pixel of the first batch is above 1"):
        trainer.fit(module, datamodule=Given((IMAGES > 0.5).byte()))


def test_a_model_that_was_never_trained_is_warned_of(tmp_path):
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    images = Given((255 * IMAGES).byte())
    told = "never trained: 2 of its 2 layers of activation normalisation have seen no batch"
    for run in (trainer.test, trainer.validate):
        with pytest.warns(UserWarning, match=told):
            run(module, datamodule=images)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "new.ckpt")
    options = {"ckpt_path": str(tmp_path / "new.ckpt"), "output": str(tmp_path / "s.npz")}
    with pytest.warns(UserWarning, match=told):
        trainer.sample(module, num_samples=1, **options)


def test_a_trained_model_is_not_warned_of(tmp_path, recwarn):
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    images = Given((255 * IMAGES).byte())
    trainer.fit(module, datamodule=images)
    trainer.test(module, datamodule=images)
    assert not [w for w in recwarn if "trained" in str(w.message)]
