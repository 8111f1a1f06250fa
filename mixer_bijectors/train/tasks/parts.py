"""Something computed of each image, on any devices, in pieces that survive a crash."""

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checks import Batches, as_batch, check_precision, warn_if_untrained
from ..data.batches import Batch, Source, run_seed, seed_generators
from ..data.image_data_module import ImageDataModule
from ..density_estimation import DensityEstimation
from ..io.checkpoints import load_checkpoint, misfit
from ..io.errors import RunError
from ..io.files import make_folder, replacing

__all__ = ["NO_CHECKPOINT", "Arrays", "Parts", "compute_in_parts", "remove_parts"]

NO_CHECKPOINT = "which weights? pass --ckpt_path runs/NAME/version_N/checkpoints/best.ckpt"
Arrays = dict[str, np.ndarray]


class Parts:
    """Results of batches in a folder beside the output that they will make, until they do.

    Args:
        output: the file to be made of them.
        task: what they are results of; those of another task are thrown away.
    """

    def __init__(self, output: str | os.PathLike[str], task: dict[str, Any]) -> None:
        output = Path(output)
        self.folder = output.with_name(f"{output.name}.parts")
        self.task = json.loads(json.dumps(task, default=str))

    def open(self) -> set[int]:
        """Numbers of the batches that are done."""
        about = self.folder / "task.json"
        if not about.exists() or json.loads(about.read_text()) != self.task:
            shutil.rmtree(self.folder, ignore_errors=True)
            make_folder(self.folder)
            with replacing(about) as draft:
                draft.write_text(json.dumps(self.task))
        return {int(path.stem) for path in self.folder.glob("[0-9]*.npz")}

    def write(self, number: int, arrays: Arrays) -> None:
        """Keep the results of a batch."""
        with replacing(self.folder / f"{number:09d}.npz") as draft:
            np.savez(draft, **arrays)  # type: ignore[arg-type]

    def read(self) -> Arrays:
        """The results of all batches in their order."""
        parts = [dict(np.load(path)) for path in sorted(self.folder.glob("[0-9]*.npz"))]
        if not parts:
            raise RunError("none of the images can be read")
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def compute_in_parts(
    trainer: L.Trainer,
    module: DensityEstimation,
    compute: Callable[[Batch], dict[str, Tensor]],
    data: ImageDataModule,
    ckpt_path: str | None,
    output: str | os.PathLike[str],
    *,
    split: str = "test",
    size: int | None = None,
    task: Sequence[Any] = (),
    labelled: bool = True,
) -> Arrays:
    """Results of `compute` for each image of a split, in its order, by trained weights.

    Args:
        trainer: where it is computed.
        module: the model, whose weights are read from the checkpoint.
        compute: from a batch, tensors with one row for each image.
        data: the images.
        ckpt_path: a checkpoint of `fit`.
        output: the file that the results are for; they are kept beside it on the way.
        split: 'train', 'val' or 'test'.
        size: take the first so many images alone.
        task: what else the results depend on.
        labelled: whether labels are looked at, if the model takes any.

    Returns:
        The results of all images, without those that could not be read, in the first process;
        nothing in the others. `remove_parts` tidies up once they are written.

    Raises:
        RunError: no checkpoint, or one that does not fit the model.
    """
    check_precision(trainer)
    checkpoint = load_weights(module, ckpt_path)
    if not isinstance(data, ImageDataModule):
        raise RunError(
            f"this needs a data module that is an ImageDataModule, got a {type(data).__name__}"
        )
    data.labels = module.labels if labelled else None
    data.known_classes = module.class_names
    make_folder(Path(output).resolve().parent)
    stat = checkpoint.stat()
    about = {
        "checkpoint": [str(checkpoint), stat.st_size, stat.st_mtime_ns],
        "data": [type(data).__name__, _settings(data), split, size],
        "model": [_fingerprint(module.density), module.noise, str(trainer.precision)],
        "seed": run_seed(),
        "task": list(task),
    }
    parts = Parts(output, about)
    pieces = _Pieces(data, split, size, parts)
    computation = _Computation(module, compute, parts, data.batch_size)
    try:
        trainer.predict(computation, datamodule=pieces, return_predictions=False)
        results = parts.read() if trainer.is_global_zero else {}
    except RunError as error:
        # A full disk is put right without changing what is computed.
        if trainer.is_global_zero and not isinstance(error.__cause__, OSError):
            remove_parts(output)
        raise
    for key, values in results.items():
        rows = values.reshape(len(values), -1)
        bad = int((~np.isfinite(rows)).any(1).sum())
        if bad:
            print(f"{key}: {bad} of {len(values)} images have values that are not finite")
    return results


def remove_parts(output: str | os.PathLike[str]) -> None:
    """Remove what was kept on the way to `output`, which is written now."""
    output = Path(output)
    for folder in output.parent.glob(f"{glob.escape(output.name)}*.parts"):
        shutil.rmtree(folder, ignore_errors=True)


def load_weights(module: DensityEstimation, ckpt_path: str | os.PathLike[str] | None) -> Path:
    """Load the weights of a checkpoint of `fit`, the averaged ones if there are any.

    Returns:
        Where the checkpoint is.

    Raises:
        RunError: there is none, or they do not fit the model.
    """
    if ckpt_path is None:
        raise RunError(NO_CHECKPOINT)
    checkpoint = load_checkpoint(ckpt_path)
    if "state_dict" not in checkpoint:
        raise RunError(f"{ckpt_path} is no checkpoint of fit: it holds no state_dict")
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = misfit(str(error))
        raise RunError(
            f"the weights of {ckpt_path} do not fit the model of the config: {reason}"
        ) from error
    module.on_load_checkpoint(checkpoint)
    module.config = module.config or checkpoint.get("config")
    warn_if_untrained(module.density)
    return Path(ckpt_path).resolve()


def _settings(thing: Any) -> dict[str, str]:
    """What changes the results of a data module or of a layer beside its weights, as text."""
    other = ("drawn", "num_workers", "sources", "trainer", "training")
    return {
        key: _text(value)
        for key, value in vars(thing).items()
        if not key.startswith("_") and key not in other
    }


def _text(value: Any) -> str:
    """A setting in the same words in each process, with all of a path that is there."""
    if isinstance(value, str | os.PathLike):
        path = os.path.expanduser(os.fspath(value))
        return os.path.realpath(path) if os.path.exists(path) else os.fsdecode(value)
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


def _digest(data: ImageDataModule, split: str, size: int | None) -> str:
    """A digest of which images a split has, by their names and by when files were written."""
    source: Source = data.source(split)
    digest = hashlib.sha256()
    for index in range(min(len(source), size or len(source))):
        name = source.name(index)
        digest.update(f"{name}\n{_state(name)}\n".encode("utf8", "surrogateescape"))
    for value in vars(source).values():
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().numpy().tobytes())
    # What holds many images, such as a table, is no file by the name of one of them.
    for value in vars(data).values():
        if isinstance(value, str | os.PathLike) and value:
            path = os.path.expanduser(os.fspath(value))
            digest.update(_state(path).encode())
            inside = [os.path.join(f, name) for f, _, names in os.walk(path) for name in names]
            digest.update("\n".join(map(_state, sorted(inside))).encode())
    return digest.hexdigest()


def _state(path: str | bytes) -> str:
    """Where a file is, its size and when it was written; nothing if it is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return ""
    if not S_ISREG(stat.st_mode):
        return ""
    return f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def _fingerprint(model: nn.Module) -> str:
    """A digest of all layers and of their settings, as other ones may fit the same weights."""
    layers = [[type(layer).__name__, _settings(layer)] for layer in model.modules()]
    return hashlib.sha256(json.dumps([str(model), layers], default=str).encode()).hexdigest()


class _Pieces(L.LightningDataModule):
    """The batches of a split that are not done yet."""

    def __init__(
        self, data: ImageDataModule, split: str, size: int | None, parts: Parts
    ) -> None:
        super().__init__()
        self.data = data
        self.split = split
        self.size = size
        self.parts = parts

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        trainer: Any = self.trainer
        self.data.trainer = trainer
        self.data.setup(stage)
        self.data.source(self.split)  # must be there before anything is written
        done = set()
        if trainer.is_global_zero:
            self.parts.task["images"] = _digest(self.data, self.split, self.size)
            done = self.parts.open()
        # One process may write its first part before another one has looked.
        self.done = trainer.strategy.broadcast(done)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.data.loader(self.split, size=self.size, skip=self.done)

    def teardown(self, stage: str) -> None:
        self.data.teardown(stage)


class _Computation(L.LightningModule):
    """Writes what is computed of each batch."""

    def __init__(
        self,
        module: DensityEstimation,
        compute: Callable[[Batch], dict[str, Tensor]],
        parts: Parts,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.module = module
        self.compute = compute
        self.parts = parts
        self.batch_size = batch_size

    def configure_model(self) -> None:
        """Each process holds all weights, also with the strategy of a run that spread them."""

    def predict_step(self, batch: Batches, batch_idx: int) -> int:
        batch = as_batch(batch)
        kept = batch.kept
        if not kept:
            return 0
        seed_generators(run_seed(), batch.indices[0])
        results = {"index": torch.tensor(batch.indices)} | self.compute(batch)
        if batch.labels is not None:
            results["labels"] = batch.labels
        arrays = {key: value.detach().cpu().numpy()[kept] for key, value in results.items()}
        self.parts.write(batch.indices[0] // self.batch_size, arrays)
        return len(kept)

    def on_predict_end(self) -> None:
        # The first process reads what all of them have written.
        self.trainer.strategy.barrier()
