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
        """What is there already stays."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if not self._trimmed and self._fs.isfile(self.metrics_file_path):
            self._trim(step or 0)
        self._trimmed = True
        super().log_metrics(metrics_dict, step)

    def _trim(self, step: int) -> None:
        with open(self.metrics_file_path, newline="") as file:
            reader = csv.DictReader(file)
            self.metrics_keys = list(reader.fieldnames or [])
            # A row without a step was cut short.
            rows = [row for row in reader if row["step"] and int(row["step"]) < step]
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
