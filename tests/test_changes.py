"""Settings that differ from those of the checkpoint."""

from commands import FLOW, task
from tiny_runs import REPLACE


def test_another_model_is_told(run, tmp_path, capsys):
    task("score", run, tmp_path / "scores.csv", f"{FLOW}patch_size", "[2, 8]")
    told = "model.flow.init_args.patch_size is [2, 8], and was 4 in the run of the checkpoint"
    assert told in capsys.readouterr().out
    task("score", run, tmp_path / "scores.csv", "--model.learning_rate", 1, *REPLACE)
    assert "was" not in capsys.readouterr().out
