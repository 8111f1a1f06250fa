"""The file that a task writes."""

import shutil

import pytest
import torch
from commands import QUIET, call, task
from tiny_runs import IMAGES, REPLACE, Constant, make_flow, make_trainer, write_images

from mixer_bijectors.train import DensityEstimation, RunError


def test_outputs_lie_in_the_folder_of_the_run_and_are_not_overwritten(run, tmp_path, capsys):
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    shutil.copy(run, path)
    few = ("sample", "--ckpt_path", path, *QUIET, "--num_samples", 2)
    call(*few)
    written = path.parents[1] / "results" / "samples.npz"
    first = written.read_bytes()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")]
    assert lines[0].startswith(f"wrote {written}: 2 images, drawn with --seed ")
    assert lines[1:] == [f"wrote {written.with_suffix('.png')}: 2 images"]
    told = call(*few, fails=True)
    assert f"{written} is there already; pass --overwrite true" in told
    assert "or another name with --output" in told and written.read_bytes() == first
    call(*few, *REPLACE)
    assert written.read_bytes() != first
    written.unlink()
    assert "samples.png is there already" in call(*few, fails=True)


def test_the_home_folder_is_found_in_output(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    call("export", "--ckpt_path", run, *QUIET, "--output", "~/model.safetensors")
    assert (tmp_path / "model.safetensors").is_file()


def test_a_task_that_fails_leaves_nothing(run, tmp_path):
    bad = write_images(tmp_path / "bad", 0)
    (bad / "3.png").write_text("no image")
    output = tmp_path / "new" / "s.csv"
    assert "3.png" in task("score", run, output, "--anomalies", bad, fails=True)
    assert not output.parent.exists()
    module = DensityEstimation(make_flow())
    labels = torch.tensor([0, 0, 0, 1, 1, 1, -1, -1])
    for known in (None, labels, torch.zeros(8).long()):
        data = Constant((255 * IMAGES).byte(), known)
        with pytest.raises((RunError, ValueError), match="needs"):
            make_trainer().probe(module, data, str(run), str(tmp_path / "new" / "p.npz"))
    assert not output.parent.exists()
