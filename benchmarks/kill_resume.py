"""A training run that is killed again and again against one that is not: the same weights?

Both train the MixerFlow of `photos.yaml` with averaged weights and a checkpoint every fifty
steps. One of them gets SIGKILL at random moments, start-up and the writing of checkpoints
included, and is started again each time with `--ckpt_path last`. In the end, weights, averaged
weights and the state of the optimiser are compared bit for bit, in the last checkpoint and in
the best by validation; after each kill, all checkpoints are loaded.

    python benchmarks/kill_resume.py
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_json
from torch import Tensor

from mixer_bijectors.train import load_checkpoint

CONFIG = str(files("mixer_bijectors.train") / "configs" / "photos.yaml")


def command(folder: Path, steps: int, options: list[str]) -> list[str]:
    average = "lightning.pytorch.callbacks.EMAWeightAveraging"
    return [
        *(sys.executable, "-m", "mixer_bijectors.train", "fit"),
        *("--config", CONFIG),
        *("--ckpt_path", "last"),
        *("--trainer.default_root_dir", str(folder)),
        *("--trainer.max_steps", str(steps)),
        *("--trainer.max_time", "null"),
        *("--trainer.enable_progress_bar", "false"),
        f"--trainer.callbacks+={average}",
        "--trainer.callbacks.use_buffers=false",
        *options,
    ]


def run(arguments: list[str], kill_after: float | None = None) -> bool:
    """Start a run, and whether it came to its end; it is killed after so many seconds."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
        if code:
            log.seek(0)
            raise RuntimeError(f"the run failed:\n{log.read()}")
        return True


def last(folder: Path) -> Path:
    """The newest checkpoint; a run that is killed before its first leaves an empty folder."""
    found = folder.glob("version_*/checkpoints/last.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime)


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ, looking at tensors bit by bit."""
    if isinstance(a, Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [path]
        return [d for key in a for d in differing(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [path]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differing(x, y, f"{path}/{i}")]
    return [] if a == b else [path]


def differences(whole: Path, resumed: Path) -> list[str]:
    """Where the checkpoints in two folders differ."""
    keys = ("global_step", "state_dict", "current_model_state", "optimizer_states")
    names, others = ({path.name for path in complete(folder)} for folder in (whole, resumed))
    difference = sorted(names ^ others)
    for name in names & others:
        a, b = (load_checkpoint(folder / name) for folder in (whole, resumed))
        for key in (*keys, "lr_schedulers"):
            difference += differing(a[key], b[key], f"{name}/{key}")
    return difference


def complete(folder: Path) -> list[Path]:
    """Checkpoints, without those that a killed process had begun to write."""
    return [path for path in folder.glob("*.ckpt") if path.name[0] != "."]


def compare(
    folder: Path, kills: int, steps: int, options: list[str], seed: int
) -> dict[str, Any]:
    """Run both sides and compare what is left of them."""
    start = time.perf_counter()
    run(command(folder / "short", 1, options))
    start_up = time.perf_counter() - start
    start = time.perf_counter()
    run(command(folder / "whole", steps, options))
    whole_seconds = time.perf_counter() - start
    moments = random.Random(seed)
    killed, unreadable, start = 0, 0, time.perf_counter()
    reached = []
    # Often within the start-up, or else some way beyond it, so that the run outlasts all kills.
    longest = start_up + 2 * max(whole_seconds - start_up, 1) / (kills + 1)
    while True:
        limit = moments.uniform(1, longest) if killed < kills else None
        if run(command(folder / "killed", steps, options), limit):
            break
        killed += 1
        checkpoints = (folder / "killed").glob("*/checkpoints")
        for path in (path for inside in checkpoints for path in complete(inside)):
            try:
                checkpoint = load_checkpoint(path)
            except RuntimeError:
                unreadable += 1
            else:
                if path.name == "last.ckpt":
                    reached.append(checkpoint["global_step"])
    difference = differences(*(last(folder / side).parent for side in ("whole", "killed")))
    return {
        "steps": steps,
        "kills": killed,
        "steps when killed": reached,
        "checkpoints unreadable": unreadable,
        "tensors that differ": len(difference),
        "seconds whole": round(whole_seconds),
        "seconds with kills": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the row to this file")
    parser.add_argument("options", nargs="*", help="further options for both runs, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = compare(
            Path(folder), arguments.kills, arguments.steps, arguments.options, arguments.seed
        )
    print("steps when killed:", row.pop("steps when killed"))
    print_table([row])
    write_json(arguments.json, row)


if __name__ == "__main__":
    main()
