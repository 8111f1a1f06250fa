"""What to do with a model that has been trained."""

from commands import fit

from mixer_bijectors.train.next_steps import next_steps


def test_the_last_lines_say_what_to_do_next(tmp_path, capsys):
    fit(tmp_path / "my runs", 1)
    last = capsys.readouterr().out.splitlines()[-3:]
    folder = tmp_path / "my runs" / "version_0"
    assert last[0].endswith(f"are in {folder}")
    command = f"mixer-bijectors sample --ckpt_path '{folder}/checkpoints/last.ckpt'"
    assert last[1] == f"draw samples with: {command}"
    assert "grid of patches: train it longer" in last[2] and "photos_tarflow" in last[2]
    # Flows of normflows do not draw samples by the command.
    assert next_steps(None, "last.ckpt") == (
        "score images with: mixer-bijectors score --ckpt_path last.ckpt"
    )
