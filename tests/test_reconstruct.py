"""The task `reconstruct`."""

import numpy as np
import torch
from commands import task
from PIL import Image

from mixer_bijectors.images import quantize


def test_reconstructions_hold_the_latents_themselves(run, model, tmp_path):
    task("reconstruct", run, tmp_path / "r.npz", "--num_images", 5)
    result = np.load(tmp_path / "r.npz")
    assert result["latents"].dtype == np.float32
    with torch.no_grad():
        back = model(torch.from_numpy(result["latents"]))
    assert np.array_equal(quantize(back).numpy(), result["reconstructions"])
    levels = result["images"].astype(int) - result["reconstructions"]
    assert np.abs(levels).max() <= 1, "noise may lie at the edge of its level"
    assert result["error"].max() < 1e-4
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.size == (8 * (5 * 10 + 2), 8 * (3 * 10 + 2))
