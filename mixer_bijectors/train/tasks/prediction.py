"""Predictions of a trained model for each image, on any devices, in files by batch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader

from ..checks import Batches, as_batch
from ..data.batches import Batch
from ..data.image_data_module import ImageDataModule
from ..data.sampling import run_seed, seed_generators
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from ..io.files import atomic_write, make_folder
from .fingerprint import as_text, digest_of_images, digest_of_model, settings
from .output import Output

__all__ = ["Arrays", "BatchWriter", "Compute", "Prediction", "predict_images"]

Arrays = dict[str, np.ndarray]
Compute = Callable[[DensityEstimation, Batch], dict[str, Tensor]]


def predict_images(
    output: Output,
    compute: Compute,
    data: ImageDataModule,
    split: str = "test",
    *,
    name: str | None = None,
    size: int | None = None,
    labelled: bool = True,
    seed: int | Literal["new"] | None = None,
) -> Arrays:
    """Results of `compute` for each image of a split, in the order of the images.

    Args:
        output: the output of the task; results of batches are kept beside it on the way.
        compute: from the model and a batch, tensors with one row for each image. Options are
            given to it by `functools.partial`, by which results of other options are known.
        data: the images.
        split: 'train', 'val' or 'test'.
        name: distinguishes the results from others of the same task; by default the split.
        size: take the first so many images alone.
        labelled: whether labels are looked at, if the model takes any.
        seed: what random numbers of batches depend on; by default the seed of the run, with
            'new' one that no one knows before, which `output.seed` is set to.

    Returns:
        The results of all images, without those that could not be read, in the first process;
        nothing in the others.
    """
    trainer: Any = output.trainer
    if not isinstance(data, ImageDataModule):
        raise RunError(
            f"this needs a data module that is an ImageDataModule, got a {type(data).__name__}"
        )
    data.labels = output.model.labels if labelled else None
    data.known_classes = output.model.class_names
    writer = BatchWriter(output.parts / (name or split), data.batch_size)
    prediction = Prediction(output, compute, data, split, size, writer, seed)
    trainer.callbacks.append(writer)
    try:
        trainer.predict(prediction, return_predictions=False)
    finally:
        trainer.callbacks.remove(writer)
    results = writer.read() if trainer.is_global_zero else {}
    for key, values in results.items():
        bad = int((~np.isfinite(values.reshape(len(values), -1))).any(1).sum())
        if bad:
            print(f"{key}: {bad} of {len(values)} images have values that are not finite")
    return results


class BatchWriter(BasePredictionWriter):
    """Keeps the predictions of each batch in a file, until a task has read them all.

    Args:
        folder: where the files are.
        batch_size: number of images in a batch.
    """

    def __init__(self, folder: Path, batch_size: int) -> None:
        super().__init__("batch")
        self.folder = folder
        self.batch_size = batch_size

    def start(self, about: dict[str, Any], seed: int | None) -> tuple[set[int], int]:
        """The numbers of the batches that are done, and the seed, a new one if it is None.

        Predictions that depend on anything else than `about` and the seed are removed.
        """
        file = self.folder / "task.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        if seed is None:
            seed = kept.get("seed", SystemRandom().randrange(2**31))
        about = json.loads(json.dumps(about | {"seed": seed}, default=str))
        if kept != about:
            shutil.rmtree(self.folder, ignore_errors=True)
            make_folder(self.folder)
            with atomic_write(file) as draft:
                draft.write_text(json.dumps(about))
        return {int(path.stem) for path in self.folder.glob("[0-9]*.npz")}, seed

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        kept = batch.kept
        if kept:
            arrays = {k: value.detach().cpu().numpy()[kept] for k, value in prediction.items()}
            number = batch.indices[0] // self.batch_size
            with atomic_write(self.folder / f"{number:09d}.npz") as draft:
                np.savez(draft, **arrays)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The first process reads what all of them have written.
        trainer.strategy.barrier()

    def read(self) -> Arrays:
        """The predictions of all batches in their order."""
        batches = [dict(np.load(path)) for path in sorted(self.folder.glob("[0-9]*.npz"))]
        if not batches:
            raise RunError("none of the images can be read")
        return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


class Prediction(L.LightningModule):
    """Runs a trained model over the batches of a split that are not done yet."""

    def __init__(
        self,
        output: Output,
        compute: Compute,
        data: ImageDataModule,
        split: str,
        size: int | None,
        writer: BatchWriter,
        seed: int | Literal["new"] | None,
    ) -> None:
        super().__init__()
        self.model = output.model
        self.output = output
        self.compute = compute
        self.data = data
        self.split = split
        self.size = size
        self.writer = writer
        self.seed = run_seed() if seed is None else seed

    def configure_model(self) -> None:
        """Each process holds all weights, also with the strategy of a run that spread them."""

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer
        self.data.setup(stage)
        self.data.source(self.split)  # must be there before anything is written
        state: Any = None
        if self.trainer.is_global_zero:
            state = self.writer.start(self._about(), None if self.seed == "new" else self.seed)
        # One process may write its first batch before another one has looked.
        self.done, self.output.seed = self.trainer.strategy.broadcast(state)

    def _about(self) -> dict[str, Any]:
        """All that predictions depend on, other than the seed."""
        path, stat = self.output.checkpoint.resolve(), self.output.checkpoint.stat()
        return {
            "checkpoint": [str(path), stat.st_size, stat.st_mtime_ns],
            "compute": as_text(self.compute),
            "data": [type(self.data).__name__, settings(self.data), self.split, self.size],
            "images": digest_of_images(self.data, self.split, self.size),
            "model": [digest_of_model(self.model.flow), self.model.noise],
            "precision": str(self.trainer.precision),
        }

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.data.loader(self.split, size=self.size, skip=self.done)

    def predict_step(self, batch: Batches, batch_idx: int) -> dict[str, Tensor] | None:
        batch = as_batch(batch)
        if not batch.kept:
            return None
        seed_generators(self.output.seed, batch.indices[0])
        results = {"index": torch.tensor(batch.indices)} | self.compute(self.model, batch)
        return results if batch.labels is None else results | {"labels": batch.labels}

    def teardown(self, stage: str) -> None:
        self.data.teardown(stage)
