"""The task `export`."""

import torch

from mixer_bijectors.train import load_checkpoint


def test_the_weights_that_are_exported_are_the_averaged_ones(run, model):
    saved = load_checkpoint(run)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][f"flow.{key}"])
    assert any(
        not torch.equal(value, saved["current_model_state"][f"flow.{key}"])
        for key, value in model.state_dict().items()
    )
