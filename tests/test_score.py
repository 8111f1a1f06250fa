"""The task `score`."""

import re

import numpy as np
import pytest
from commands import QUIET, bits_of_test, call, task
from PIL import Image
from tiny_runs import table, write_images


def test_scores_are_those_of_test(run, tmp_path, capsys):
    task("score", run, tmp_path / "scores.csv")
    rows = table(tmp_path / "scores.csv")
    assert [int(row["index"]) for row in rows] == list(range(359))
    mean = np.mean([float(row["bits_per_dim"]) for row in rows])
    assert f"{mean:.4f} bits per dimension, mean of 359 images" in capsys.readouterr().out
    call("test", "--ckpt_path", run, *QUIET)
    assert bits_of_test(capsys.readouterr().out) == pytest.approx(mean, abs=1e-5)
    call("validate", "--ckpt_path", run, *QUIET)
    assert "val/bits_per_dim" in capsys.readouterr().out


def test_scores_of_a_part_are_told_to_be_that(run, tmp_path, capsys):
    few = ("--data.init_args.batch_size", 8, "--trainer.limit_predict_batches", 2)
    task("score", run, tmp_path / "scores.csv", *few)
    printed = capsys.readouterr().out
    assert "mean of 16 of 359 images" in printed
    assert "trainer.limit_predict_batches is 2" in printed and "leaves out images" in printed
    call("test", "--ckpt_path", run, *QUIET, "--trainer.limit_test_batches", 0)
    assert "trainer.limit_test_batches is 0" in capsys.readouterr().out


def test_anomalies_are_told_from_a_second_folder(run, tmp_path, capsys):
    (tmp_path / "others").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    for index, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / "others" / f"{index}.png")
    task("score", run, tmp_path / "scores.csv", "--anomalies", tmp_path / "others")
    told = re.findall(r"AUROC by (\w+) (\S+)", capsys.readouterr().out)
    assert [name for name, _ in told] == ["bits_per_dim", "ratio", "typicality"]
    sets = [row["set"] for row in table(tmp_path / "scores.csv")]
    assert sets == ["test"] * 359 + ["anomalies"] * 6


def test_anomalies_are_looked_for_before_anything_is_computed(run, tmp_path):
    told = task("score", run, tmp_path / "s.csv", "--anomalies", "./mistyped", fails=True)
    assert "there is no folder or file ./mistyped" in told
    assert not list(tmp_path.iterdir())
    folder = write_images(tmp_path / "imgs", 0)
    (folder / "3.png").write_text("no image")
    options = ("--data", "mixer_bijectors.train.Images", "--data.init_args.path", folder)
    options += (
        "--data.init_args.image_shape",
        "[1, 8, 8]",
        "--data.init_args.test_split",
        "all",
    )
    told = task(
        "score", run, tmp_path / "s.csv", *options, "--data.init_args.batch_size", 1, fails=True
    )
    assert "3.png" in told and not (tmp_path / "s.csv.parts").exists()
