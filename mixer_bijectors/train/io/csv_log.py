"""Logs that go on where a run was cut off."""

import csv
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from .files import replacing

__all__ = ["ResumableCSVLogger"]


class _Writer(ExperimentWriter):
    """Keeps the rows of the steps before the first one that it is given."""

    _trimmed = False

    def _check_log_dir_exists(self) -> None:
        """What is there already stays, and says which columns there are."""
        if self._fs.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        # A run that was over is tested again, and has trained no step anew.
        tests = all(key.startswith(("test/", "epoch")) for key in metrics_dict)
        if not (self._trimmed or tests):
            self._trim(step or 0)
            self._trimmed = True
        super().log_metrics(metrics_dict, step)

    def _trim(self, step: int) -> None:
        if not self._fs.isfile(self.metrics_file_path):
            return
        with open(self.metrics_file_path, newline="") as file:
            # A row without its last fields was cut short.
            whole = [row for row in csv.DictReader(file) if None not in row.values()]
        rows = [row for row in whole if int(row["step"]) < step]
        with replacing(self.metrics_file_path) as draft, draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSVLogger, but a run that is resumed in its folder keeps its rows."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(self.log_dir)
        return self._experiment
