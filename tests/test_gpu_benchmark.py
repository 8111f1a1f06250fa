"""The script for a GPU, tried out on the CPU in tiny sizes."""

import json

import gpu
import gpu_parts
import pretended_gpu
import pytest
import splines
import torch
from density import tar_flow
from gpu_parts import PARTS, Setting
from tarflow_sampling import make_sides

TINY = ["--device", "cpu", "--tiny", "--no-compile"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_part_measures(name):
    rows = list(PARTS[name][0](Setting("cpu", compile=False, tiny=True)))
    assert all(row["ms"] > 0 for row in rows)
    if name == "battery":
        assert "2 passed, 0 failed, 0 errors" in rows[-1]["note"]


@pytest.mark.slow
def test_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    gpu.main([*TINY, "--only", "splines", "--json", str(path)])
    head, *lines = capsys.readouterr().out.splitlines()
    written = json.loads(path.read_text())
    assert head == written["machine"]
    assert f"torch {torch.__version__}" in head
    assert len(written["rows"]) == 15 == len(lines) - 3
    assert lines[1].startswith("| part ")


@pytest.mark.slow
def test_a_part_that_fails_is_a_row():
    options = [*TINY, "--reference", "/nowhere"]
    (row,) = gpu.run_apart("sampling", options, 60)
    assert row["note"] == "failed: ModuleNotFoundError: No module named 'transformer_flow'"


def test_a_part_that_takes_too_long_is_a_row():
    assert gpu.run_apart("splines", TINY, 0.1) == [
        {"part": "splines", "note": "stopped after 0 s"}
    ]


def test_a_side_that_fails_is_a_row():
    def fail():
        raise ValueError("no such kernel\nand more")

    sides = {"one": lambda: None, "other": fail}
    one, other = gpu_parts.measure("part", "task", sides, Setting("cpu", tiny=True))
    assert one["ms"] > 0 and "note" not in one
    assert other["note"] == "ValueError: no such kernel" and "ms" not in other


def test_ratios_are_to_the_fastest_peer_of_the_task():
    rows = [
        {"part": "p", "task": task, "side": side, "ms": ms, "peer": side != "ours"}
        for task, times in (("a", (2.0, 4.0, 3.0)), ("b", (2.0, 1.0, 5.0)))
        for side, ms in zip(("ours", "theirs", "others"), times)
    ]
    ratios = [row["peer / this"] for row in gpu.table(rows)]
    assert ratios == ["1.50", "0.75", "1.00", "0.50", "1.00", "0.20"]


@pytest.mark.parametrize(
    ("output", "note"),
    [
        ("..s.F [ 40%]\n..E", "5 passed, 1 failed, 1 errors, 1 skipped; not finished"),
        ("bringing up nodes...\n", "0 passed, 0 failed, 0 errors, 0 skipped; not finished"),
        (
            "..F [100%]\n==== short test summary info ====\n"
            "FAILED tests/test_battery.py::test_one[A-b] - AssertionError: E...\n"
            "1 failed, 2 passed in 3.00s\n",
            "2 passed, 1 failed, 0 errors, 0 skipped (test_one[A-b]); not finished",
        ),
    ],
)
def test_tests_are_counted_while_they_run(output, note):
    assert gpu_parts.battery_row(output, 1.0, finished=False)["note"] == note


@pytest.mark.skipif(bool(pretended_gpu.why_not()), reason=str(pretended_gpu.why_not()))
def test_parts_are_on_the_device():
    """As far as there are no gradients."""
    model = tar_flow(2, 1, 64)
    with pretended_gpu.pretended_gpu(), torch.no_grad():
        for name, side in splines.SIDES.items():
            if name != "torchflows":
                assert splines.tasks(name, side, (8, 2), "cuda")["inverse"]()[0].is_cuda
        model.to("cuda")
        sides = make_sides(model, None, 2)
        assert all(run().is_cuda for run in sides.values())
