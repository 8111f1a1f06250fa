"""Clock and table of the benchmarks; sides are timed in turn, which is fair to both."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = [
    "Runs",
    "fitting_parser",
    "peak_memory",
    "print_table",
    "synchronize",
    "time_in_turn",
    "timing_parser",
    "write_json",
]


def timing_parser(doc: str) -> argparse.ArgumentParser:
    """The options of every benchmark that times."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--json", help="write the rows to this file")
    return parser


def fitting_parser(doc: str, budget: float) -> argparse.ArgumentParser:
    """The options of every benchmark that trains its sides for equal times."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--budget", type=float, default=budget, help="seconds for each run")
    parser.add_argument("--search", type=float, help="seconds for each try of a learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", help="keep runs in this file, and go on from it")
    return parser


class Runs:
    """Results by name, in a JSON file if there is a path; what that holds is not run again."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        if path and Path(path).exists():
            self.results = json.loads(Path(path).read_text())

    def __call__(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of that name, of `run` unless it is there."""
        if key not in self.results:
            self.results[key] = run()
            print(key, self.results[key], flush=True)
            write_json(self.path, self.results)
        return self.results[key]


def synchronize() -> None:
    """Wait until a GPU, if one is in use, has done what it was told: calls return before."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def time_in_turn(
    sides: Mapping[str, Callable[[], object]], repeats: int = 30, warmup: int = 5
) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + repeats):
        for name, run in sides.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def peak_memory(run: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes of tensors that `run` held at once, beyond what was there before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A Markdown table, with the first row's keys as its head."""
    columns = list(rows[0])
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    for line in (columns, ["-" * width for width in widths], *cells):
        padded = (cell.ljust(width) for cell, width in zip(line, widths))
        print("| " + " | ".join(padded) + " |")


def write_json(path: str | None, rows: object) -> None:
    """Write the rows to `path`, if there is one."""
    if path:
        Path(path).write_text(json.dumps(rows, indent=2) + "\n")
