"""Logs that go on where a run was cut off."""

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger

from .._lightning import ContinuedWriter
from .files import atomic_write

__all__ = ["ResumableCSVLogger"]


class _Writer(ContinuedWriter):
    """Keeps the rows of the steps before the first one that it is given."""

    _trimmed = False

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        # A run that was over is tested again, and has trained no step anew.
        tests = all(key.startswith(("test/", "epoch")) for key in metrics_dict)
        if not (self._trimmed or tests):
            self._trim(step or 0)
            self._trimmed = True
        super().log_metrics(metrics_dict, step)

    def _trim(self, step: int) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            # A row without its last fields was cut short.
            whole = [row for row in csv.DictReader(file) if None not in row.values()]
        rows = [row for row in whole if int(row["step"]) < step]
        with atomic_write(path) as draft, draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSVLogger, but a run that is resumed in its folder keeps its rows."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            columns = _columns(Path(self.log_dir) / "metrics.csv")
            self._experiment = _Writer(self.log_dir, columns)
        return self._experiment


def _columns(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file).fieldnames or [])
