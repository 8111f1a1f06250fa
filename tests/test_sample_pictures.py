"""Pictures of a training run."""

import pytest
import torch
from tiny_runs import Given, make_flow, make_trainer

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, Digits, Pictures, RunError


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


def test_a_temperature_that_the_base_has_not_is_refused_at_the_start(tmp_path):
    flow = make_flow()
    del flow.q0.temperature
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path, callbacks=[Pictures()])
    with pytest.raises(ValueError, match=r"has no temperature; use temperature=1\.0"):
        trainer.fit(DensityEstimation(flow), datamodule=Digits())
    assert trainer.global_step == 0
