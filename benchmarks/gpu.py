"""The battery of tests, times and memory on a GPU, in ten minutes.

    python benchmarks/gpu.py --json gpu.json

Each part runs in a process of its own for its share of `--minutes`; what fails or takes longer
becomes a row that says so. The parts are the battery of `tests/test_battery.py`; training steps
of MixerFlow and TarFlow against normflows' Glow, models of `density.py`; splines against those
of nflows, normflows and zuko, see `splines.py`; `ParallelInverse` against loops over features,
see `inversion.py`; and samples of a TarFlow, against the code of its authors where
`--reference` is a checkout of https://github.com/apple/ml-tarflow.

A ratio is the time of the fastest peer over that of the row; memory is what a run holds at
most beyond its inputs and weights.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from common import print_table, write_json
from gpu_parts import PARTS, Row, Setting

import mixer_bijectors as mb


def run_part(name: str, setting: Setting, path: str) -> None:
    """Write the rows of a part, each as soon as it is there."""
    rows: dict[tuple[str, str], Row] = {}
    for row in PARTS[name][0](setting):
        rows[row["task"], row["side"]] = row
        write_json(f"{path}.new", list(rows.values()))
        os.replace(f"{path}.new", path)


def run_apart(name: str, options: list[str], seconds: float) -> list[Row]:
    """The rows that a part has after that time, and one that says what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "rows.json", Path(folder) / "log"
        command = [sys.executable, __file__, *options, "--part", name, "--json", str(path)]
        wrong = None
        with log.open("w") as file:
            # A group of its own, which takes with it whatever processes the part has started.
            process = subprocess.Popen(command, stderr=file, start_new_session=True)
            try:
                if process.wait(seconds):
                    lines = log.read_text().strip().splitlines() or [
                        f"exit {process.returncode}"
                    ]
                    wrong = f"failed: {lines[-1][:200]}"
            except subprocess.TimeoutExpired:
                wrong = f"stopped after {seconds:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return rows + ([{"part": name, "note": wrong}] if wrong else [])


def table(rows: list[Row]) -> list[Row]:
    """The rows as they are printed, with ratios to the fastest peer of each task."""
    peers: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.get("peer") and "ms" in row:
            key = row["part"], row["task"]
            peers[key] = min(row["ms"], peers.get(key, row["ms"]))
    printed = []
    for row in rows:
        peer, ms = peers.get((row["part"], row.get("task", ""))), row.get("ms")
        printed.append(
            {
                "part": row["part"],
                "task": row.get("task", ""),
                "side": row.get("side", ""),
                "ms": "" if ms is None else f"{ms:.3g}" if ms < 100 else f"{ms:.0f}",
                "peer / this": f"{peer / ms:.2f}" if peer and ms else "",
                "peak MB": f"{row['MB']:.0f}" if "MB" in row else "",
                "note": row.get("note", ""),
            }
        )
    return printed


def describe_machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else device
    cuda = f" with CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"{name}, torch {torch.__version__}{cuda}, mixer_bijectors {mb.__version__}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cpu to try the script out")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--reference", help="checkout of the code of TarFlow's authors")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--tiny", action="store_true", help="sizes that try the script out")
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} finds no GPU; --device cpu tries the script out"
        )
    setting = Setting(given.device, not given.no_compile, given.reference, given.tiny)
    if given.part:
        run_part(given.part, setting, given.json)
        return
    options = ["--device", given.device]
    options += ["--reference", given.reference] if given.reference else []
    options += ["--no-compile"] if given.no_compile else []
    options += ["--tiny"] if given.tiny else []
    machine, rows = describe_machine(given.device), []
    whole = sum(PARTS[name][1] for name in given.only)
    for name in given.only:
        seconds = 60 * given.minutes * PARTS[name][1] / whole
        print(f"{name}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
        rows += run_apart(name, options, seconds)
        write_json(given.json, {"machine": machine, "rows": rows})
    print(machine, end="\n\n")
    print_table(table(rows))


if __name__ == "__main__":
    main()
