"""The task `embed`."""

import numpy as np
import pytest
import torch
from commands import task
from safetensors.numpy import load_file as load_arrays
from tiny_runs import IMAGES, Constant, make_flow, make_trainer

from mixer_bijectors.train import DataError, DensityEstimation, Digits


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_embeddings_are_the_latents_of_the_images(run, model, tmp_path, suffix):
    output = tmp_path / f"embeddings.{suffix}"
    task("embed", run, output, "--split", "val")
    loaded = np.load(output) if suffix == "npz" else load_arrays(output)
    split = Digits.splits()["val"]
    with torch.no_grad():
        want = model.inverse((split.images + 0.5) / 128 - 1).flatten(1)
    assert np.allclose(loaded["embeddings"], want.numpy(), atol=1e-5)
    assert loaded["labels"].tolist() == split.labels.tolist()


def test_tasks_refuse_images_that_are_not_8_bit(run, tmp_path):
    module = DensityEstimation(make_flow())
    options = {"ckpt_path": str(run), "output": str(tmp_path / "e.npz")}
    with pytest.raises(DataError, match="images must be uint8"):
        make_trainer().embed(module, Constant(IMAGES), **options)
