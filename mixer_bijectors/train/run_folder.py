"""The folder of a run, which a start claims and a failed start removes again."""

import re
import shutil
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from .io.files import make_folder

__all__ = ["RunFolder"]

# What is written before the first step.
_OF_THE_START = re.compile(r"config\.yaml|hparams\.yaml|events\.out\.tfevents\..*")


class RunFolder:
    """The folder below which runs are numbered, `version_0`, `version_1` and so on.

    Args:
        root: the folder, which is made with those above it.

    Raises:
        RunError: it cannot be made or written to.
    """

    def __init__(self, root: Path) -> None:
        self._new = [path for path in (root, *root.parents) if not path.exists()]
        self._claimed: Path | None = None
        self.root = make_folder(root)

    def version(self, checkpoint: str | None) -> int:
        """The number of the run: that of its checkpoint, or a new one for this start alone."""
        if checkpoint is not None:
            path = Path(checkpoint).resolve()
            if path.exists() and path.parent.parent.parent == self.root.resolve():
                return _number(path.parents[1])
        version = max(map(_number, self.root.glob("version_*")), default=-1) + 1
        if getattr(rank_zero_only, "rank", 0):
            return version  # what the first process says counts
        while True:
            folder = self.root / f"version_{version}"
            try:
                folder.mkdir()
            except FileExistsError:
                version += 1
            else:
                self._claimed = folder
                return version

    def remove_failed_start(self) -> None:
        """Remove a new folder that holds no more than a start writes, and those made for it."""
        if self._claimed is not None:
            files = [path for path in self._claimed.rglob("*") if not path.is_dir()]
            if not all(_OF_THE_START.fullmatch(path.name) for path in files):
                return
            shutil.rmtree(self._claimed)
        for folder in self._new:
            if not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()


def _number(folder: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", folder.name)
    return int(match[1]) if match else -1
