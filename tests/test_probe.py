"""The task `probe`."""

import re

import numpy as np
import pytest
import torch
from commands import task
from tiny_runs import IMAGES, Constant, Cut, make_flow, make_trainer

from mixer_bijectors.train import DensityEstimation, RunError


def test_a_probe(run, tmp_path, capsys):
    task("probe", run, tmp_path / "probe.npz")
    told = float(re.search(r"linear probe (\S+)", capsys.readouterr().out)[1])
    assert told > 0.9
    assert float(np.load(tmp_path / "probe.npz")["accuracy"]) == pytest.approx(told, abs=1e-4)


def test_a_probe_needs_a_label_for_each_image(run, tmp_path):
    module = DensityEstimation(make_flow())
    data = Constant((255 * IMAGES).byte(), torch.tensor([0, 0, 0, 1, 1, 1, -1, -1]))
    options = {"ckpt_path": str(run), "output": str(tmp_path / "p.npz")}
    with pytest.raises(RunError, match="2 of the train images have none"):
        make_trainer().probe(module, data, **options)


def test_a_probe_that_was_cut_off_goes_on(run, tmp_path, monkeypatch):
    def cut(*_):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("mixer_bijectors.train.tasks.probe.linear_probe", cut)
        with pytest.raises(Cut):
            task("probe", run, tmp_path / "p.npz")
    parts = tmp_path / "p.npz.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["test", "train"]
    with monkeypatch.context() as patch:
        patch.setattr("mixer_bijectors.train.tasks.probe.embeddings", None)
        patch.setattr("mixer_bijectors.train.tasks.prediction.as_text", text_of_embeddings)
        task("probe", run, tmp_path / "p.npz")
    assert not parts.exists()


def text_of_embeddings(_):
    """What tells the computation of a probe from others."""
    return "<function embeddings>"
