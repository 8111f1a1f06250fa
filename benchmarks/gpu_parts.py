"""Measurements that make up `gpu.py`."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import inversion
import splines
import torch
from common import peak_memory, synchronize, time_in_turn
from density import ROWS, SIZE, Experiment, tar_flow
from tarflow_sampling import authors_model, make_sides
from tarflow_training import make_step
from torch import Tensor

from mixer_bijectors.images import bits_per_dim

__all__ = ["PARTS", "Row", "Setting"]

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
Run = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Where to measure, and how much of it."""

    device: str = "cuda"
    compile: bool = True
    reference: str | None = None
    tiny: bool = False

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


def measure(
    part: str,
    task: str,
    sides: Mapping[str, Run],
    setting: Setting,
    peers: tuple[str, ...] = (),
) -> Iterator[Row]:
    """Milliseconds and memory of each side, or why it has none."""
    for side, run in sides.items():
        row = {"part": part, "task": task, "side": side, "peer": side.startswith(peers)}
        try:
            run()
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            # As many repeats as fit into three seconds.
            repeats = int(3 / (time.perf_counter() - start))
            repeats = min(max(repeats, 3), setting.size(100, 2))
            row["ms"] = 1e3 * time_in_turn({"": run}, repeats, warmup=2)[""]
            row["MB"] = peak_memory(run, setting.device) / 1e6
        except Exception as error:
            row["note"] = describe(error)
        yield row


def describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"


def battery(setting: Setting) -> Iterator[Row]:
    """The tests of every layer, with as many processes as share a GPU well."""
    command = [sys.executable, "-m", "pytest", "tests/test_battery.py", "--tb=no", "-q"]
    command += ["--device", setting.device, "-n", str(setting.size(4, 0))]
    if setting.tiny:
        command += ["-k", "ActNorm and state"]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        output = ""
        assert process.stdout is not None
        while piece := process.stdout.read(64):
            output += piece
            yield battery_row(output, time.perf_counter() - start, finished=False)
    yield battery_row(output, time.perf_counter() - start, finished=True)


def battery_row(output: str, seconds: float, finished: bool) -> Row:
    """Counts of tests by their outcome, from what pytest has printed so far."""
    progress = "".join(re.findall(r"^([.FEsxX]+)(?:\s+\[.*)?$", output, re.MULTILINE))
    counts = {name: progress.count(mark) for mark, name in OUTCOMES.items()}
    note = ", ".join(f"{count} {name}" for name, count in counts.items())
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", output, re.MULTILINE)
    note += f" ({', '.join(failed[:3])}{', ...' if failed[3:] else ''})" if failed else ""
    note += "" if finished else "; not finished"
    task = "tests/test_battery.py"
    return {
        "part": "battery",
        "task": task,
        "side": "all layers",
        "ms": 1e3 * seconds,
        "note": note,
    }


OUTCOMES = {".": "passed", "F": "failed", "E": "errors", "s": "skipped"}


def training(setting: Setting) -> Iterator[Row]:
    """Steps of AdamW on one batch."""
    names = ["MixerFlow 6 layers, hidden 128", "TarFlow 2 x 2, channels 128"]
    names += ["Glow K 8, hidden 128"]
    if setting.tiny:
        names = ["MixerFlow 4 layers, hidden 48"]
    batch = setting.size(256, 2)
    x = 2 * torch.rand(batch, 3, SIZE, SIZE, device=setting.device) - 1

    def step(name: str, low: bool, compiled: bool) -> Run:
        torch.manual_seed(0)
        model = ROWS[name]().to(setting.device)
        with torch.no_grad():
            model.log_prob(x)  # initialises ActNorm
        log_prob = torch.compile(model.log_prob) if compiled else model.log_prob

        def loss() -> Tensor:
            with torch.autocast(setting.device, torch.bfloat16, enabled=low):
                return bits_per_dim(log_prob(x), x.shape[1:]).mean()

        return make_step(model, loss)

    modes = {"eager": (False, False), "bfloat16 autocast": (True, False)}
    if setting.compile:
        modes["compiled"] = (False, True)
        modes["compiled, bfloat16 autocast"] = (True, True)
    for mode, options in modes.items():
        # One model at a time, as each has its memory.
        for name in names:
            sides = {name: late(partial(step, name, *options))}
            yield from measure("training step", mode, sides, setting, ("Glow",))


def late(build: Callable[[], Run]) -> Run:
    """A run that is built when it is first needed, so that its errors are those of a run."""
    built: list[Run] = []

    def run() -> object:
        if not built:
            built.append(build())
        return built[0]()

    return run


def spline(setting: Setting) -> Iterator[Row]:
    """One spline of 8 bins for each of many numbers."""
    shape = (setting.size(16384, 64), setting.size(48, 2))
    torch._dynamo.config.cache_size_limit = 64
    sides = {name: side for name, side in splines.SIDES.items() if name != "torchflows"}
    for mode in ("eager", "compiled")[: 1 + setting.compile]:
        runs = {
            name: splines.tasks(
                name, torch.compile(side) if mode == "compiled" else side, shape, setting.device
            )
            for name, side in sides.items()
        }
        for task in ("forward", "inverse", "forward + backward"):
            each = {name: tasks[task] for name, tasks in runs.items()}
            peers = ("normflows", "nflows", "zuko")
            yield from measure("splines", f"{task}, {mode}", each, setting, peers)


def inverting(setting: Setting) -> Iterator[Row]:
    """Sequential directions of trained autoregressive flows."""
    names = ["normflows MAF", "normflows AR spline", "nflows MAF, 28 x 28"]
    for name in names[: setting.size(3, 1)]:
        task = inversion.CASES[name][0]
        fast, plain, x, _ = inversion.prepare(name, setting.size(5, 0) or 0.1, setting.device)
        x = x[: inversion.BATCH]
        sides: dict[str, Run] = {
            side: torch.no_grad()(partial(inversion.latents_or_samples, model, task, x))
            for side, model in (("loop over features", plain), ("ParallelInverse", fast))
        }
        for row in measure("inversion", f"{name}, {task}", sides, setting, ("loop",)):
            if row["side"] == "ParallelInverse" and "note" not in row:
                layers: list[Any] = [m for m in fast.modules() if hasattr(m, "last_iterations")]
                passes = " and ".join(str(layer.last_iterations) for layer in layers)
                row["note"] = f"{passes} passes"
            yield row


class OnDevice(Experiment):
    """Photographs on a device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def batch(self, permute: bool = False) -> Tensor:
        return super().batch(permute).to(self.device)


def sampling(setting: Setting) -> Iterator[Row]:
    """Images of a TarFlow trained for some seconds, by this library and its authors' code."""
    sizes = {
        "num_blocks": 4,
        "layers_per_block": setting.size(4, 1),
        "channels": setting.size(256, 64),
    }
    model = tar_flow(**sizes).to(setting.device)
    OnDevice(setting.device).fit(model, 2e-3, setting.size(25, 0) or 0.1)
    model.eval()
    peer = None
    if setting.reference:
        given = {"in_channels": 3, "size": SIZE, "patch_size": 4, "num_classes": 0}
        peer = authors_model(model, sizes | given, setting.reference).to(setting.device)
    blocks: list[Any] = [flow for flow in model.flows if hasattr(flow, "last_calls")]
    baseline = ("authors",) if peer else ("sequential",)
    for batch in (1, 16, 64)[: setting.size(3, 1)]:
        sides = {
            name: torch.no_grad()(run) for name, run in make_sides(model, peer, batch).items()
        }
        for row in measure("TarFlow samples", f"batch {batch}", sides, setting, baseline):
            if row["side"] != "authors" and "note" not in row:
                row["note"] = "+".join(str(block.last_calls) for block in blocks) + " calls"
            yield row


# Each with its share of the time.
PARTS: dict[str, tuple[Callable[[Setting], Iterator[Row]], float]] = {
    "battery": (battery, 0.35),
    "training": (training, 0.25),
    "splines": (spline, 0.2),
    "inversion": (inverting, 0.1),
    "sampling": (sampling, 0.1),
}
