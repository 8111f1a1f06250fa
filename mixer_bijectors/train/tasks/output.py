"""The file that a task writes, and what is kept beside it on the way."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from ..checks import check_precision
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from ..io.files import atomic_write, expanded, make_folder
from .pictures import is_picture, write_grid
from .weights import load_weights

__all__ = ["Output"]


class Output:
    """The file that a task writes, with the model whose weights are those of a checkpoint.

    As a context manager it removes what is kept on the way once the task has ended, also with
    an error that would come again. A task that is killed, or that finds the disk full, leaves
    it, and goes on from there when it is started again.

    Args:
        trainer: where predictions are computed.
        model: the model, whose weights are read from the checkpoint.
        ckpt_path: a checkpoint of `fit`.
        path: the file; by default one in the folder `results` of the checkpoint's run.
        default: the name that it has there, with the suffix of its format.
        suffixes: other formats that the task writes.
        pictures: whether it writes a picture beside the file.
        overwrite: whether it may replace files that are there.

    Attributes:
        seed: what random numbers depended on, once there are predictions.
        parts: folder for what is kept on the way.

    Raises:
        RunError: no checkpoint, or one that does not fit the model; a file that cannot be
            written, or that is there.
    """

    seed: int

    def __init__(
        self,
        trainer: L.Trainer,
        model: DensityEstimation,
        ckpt_path: str | os.PathLike[str] | None,
        path: str | os.PathLike[str] | None,
        default: str,
        *suffixes: str,
        pictures: bool = False,
        overwrite: bool = False,
    ) -> None:
        check_precision(trainer)
        self.trainer = trainer
        self.model = model
        self.checkpoint = load_weights(model, ckpt_path)
        folder = self.checkpoint.parent
        run = folder.parent if folder.name == "checkpoints" else folder
        self.path = run / "results" / default if path is None else Path(expanded(path))
        suffixes = (Path(default).suffix, *suffixes)
        if self.path.suffix not in suffixes:
            raise RunError(f"output must be a name with {' or '.join(suffixes)}, got {path}")
        if self.path.is_dir():
            raise RunError(f"output must be a file, and {path} is a folder")
        self.picture = self.path.with_suffix(".png")
        # Other processes may look when the first one has written already.
        for file in (self.path, self.picture)[: 1 + pictures] if trainer.is_global_zero else ():
            if file.exists() and not overwrite:
                raise RunError(
                    f"{file} is there already; pass --overwrite true to replace it, or another "
                    "name with --output"
                )
        self.is_folder_new = not self.path.parent.exists()
        make_folder(self.path.parent)
        self.parts = self.path.with_name(f"{self.path.name}.parts")

    def write(self, write: Callable[[Path], Any], note: str) -> None:
        """Have the file written, whole or not at all, and say what it holds."""
        with atomic_write(self.path) as draft:
            write(draft)
        print(f"wrote {self.path}: {note}")

    def write_npz(self, arrays: dict[str, np.ndarray], note: str) -> None:
        """Write arrays in numpy's format."""
        self.write(lambda draft: np.savez(draft, **arrays), note)  # type: ignore[arg-type]

    def write_picture(self, images: Tensor, columns: int | None, note: str) -> None:
        """Write images as a grid beside the file."""
        if not is_picture(images.shape):
            print(f"no picture is written, as the images have {images.shape[1]} channels")
            return
        write_grid(self.picture, images, columns)
        print(f"wrote {self.picture}: {note}")

    def __enter__(self) -> "Output":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A full disk is put right without changing what is computed.
        comes_again = isinstance(error, RunError | ValueError | TypeError)
        if error is not None and (not comes_again or isinstance(error.__cause__, OSError)):
            return
        if self.trainer.is_global_zero:
            shutil.rmtree(self.parts, ignore_errors=True)
            if self.is_folder_new:
                with suppress(OSError):  # it is not empty
                    self.path.parent.rmdir()
