"""Pictures of a training run."""

import numpy as np
import pytest
import torch
from test_tasks import Given, make_flow, make_trainer

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, Digits, Pictures, RunError
from mixer_bijectors.train.callbacks.learning_curve import learning_curve


def test_images_of_two_channels_have_no_pictures(tmp_path):
    flow = mb.MixerFlow((2, 8, 8), 4, 1, shift_every=0, hidden_features=8)
    images = Given(torch.randint(256, (8, 2, 8, 8), dtype=torch.uint8))
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path, callbacks=[Pictures()])
    trainer.fit(DensityEstimation(flow), datamodule=images)
    assert not list(tmp_path.rglob("*.png"))


def test_pictures_refuse_options_that_the_model_has_not(tmp_path):
    pictures = Pictures(options={"guidance": 1.0})
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path, callbacks=[pictures])
    with pytest.raises(RunError, match=r"has no guidance; .* sampling are temperature$"):
        trainer.fit(DensityEstimation(make_flow()), datamodule=Digits())


def test_a_learning_curve_says_what_it_shows(tmp_path):
    folder = tmp_path / "photos" / "version_3"
    folder.mkdir(parents=True)
    log = ["step,train/bits_per_dim,val/bits_per_dim"]
    log += [f"{step},{4 - step / 100}," for step in range(60)] + ["59,,3.5"]
    (folder / "metrics.csv").write_text("\n".join(log))
    (axis,) = learning_curve(folder / "metrics.csv", 3.25).axes
    assert axis.get_title() == "photos/version_3"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "bits per dimension")
    shown = [text.get_text() for text in axis.get_legend().get_texts()]
    assert shown == ["training, mean of 3 logged steps", "validation", "test 3.250"]
    mean = axis.lines[1]
    assert np.allclose(mean.get_ydata(), 4 - np.arange(1, 59) / 100)
    assert mean.get_xdata().tolist() == list(range(2, 60))


def test_a_learning_curve_of_nothing_does_not_warn(tmp_path, recwarn):
    (tmp_path / "metrics.csv").write_text("step,lr\n1,0.1\n")
    (axis,) = learning_curve(tmp_path / "metrics.csv").axes
    assert axis.get_legend() is None and not list(recwarn)


def test_a_temperature_that_the_base_has_not_is_refused_at_the_start(tmp_path):
    flow = make_flow()
    del flow.q0.temperature
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path, callbacks=[Pictures()])
    with pytest.raises(ValueError, match=r"has no temperature; use temperature=1\.0"):
        trainer.fit(DensityEstimation(flow), datamodule=Digits())
    assert trainer.global_step == 0
