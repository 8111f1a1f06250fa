"""Pictures of a training run."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from ...images import make_grid
from ..checks import as_batch
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from ..io.files import atomic_write, make_folder
from ..sharding import Sharded
from ..tasks.pictures import class_columns, is_picture, latents_as_images, write_grid
from ..tasks.sample import check_options, draw
from .learning_curve import learning_curve

__all__ = ["Pictures"]


class Pictures(L.Callback):
    """Writes samples, reconstructions and the learning curve into the run's folder.

    `samples.png` is renewed after every `every_n_epochs`-th validation, with a copy for each
    step under `samples/` and in TensorBoard; `reconstructions.png` (photographs, their latents,
    and the photographs that come back from these) and `curve.png` at the end of a fit, and
    `curve.png` once more with the result of the test.

    Args:
        every_n_epochs: epochs between two grids of samples.
        num_samples: images in the grid.
        temperature: scale of the base's standard deviation for samples.
        options: other options of sampling that layers of the model take, such as `guidance`,
            a weight or the arguments of `mixer_bijectors.Guidance`.

    Samples of a class-conditional model are of all classes in turn, each column of the grid of
    one class. Those of a model of noisy images are denoised. With averaged weights, samples are
    of these. Of images that have neither one nor three channels there
    is the curve alone.

    Raises:
        RunError: at the start of a fit, if a callback that averages weights comes first, or the
            model does not take one of the options.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_samples: int = 64,
        temperature: float = 0.8,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.options = {"temperature": temperature} | (options or {})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(pl_module, DensityEstimation):
            check_options(pl_module.density, self.options)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback is self:
                return
            if isinstance(callback, WeightAveraging):
                raise RunError(
                    f"list the callback Pictures before {type(callback).__name__}, which has "
                    "put the averaged weights away when callbacks after it are run"
                )

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        last = trainer.current_epoch + 1
        if trainer.sanity_checking or last % self.every_n_epochs:
            return
        folder = trainer.log_dir or trainer.default_root_dir  # asks all processes
        # A sharded model runs in all processes or in none.
        if not (trainer.is_global_zero or isinstance(trainer.strategy, Sharded)):
            return
        samples = self._sample(module)
        if not (trainer.is_global_zero and is_picture(samples.shape)):
            return
        columns = class_columns(len(samples), module.density.num_classes)
        for path in ("samples.png", f"samples/step-{trainer.global_step:07d}.png"):
            make_folder((Path(folder) / path).parent)
            write_grid(Path(folder) / path, samples, columns)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                grid = make_grid(samples, columns=columns)
                logger.experiment.add_image("samples", grid, trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        folder = make_folder(trainer.log_dir or trainer.default_root_dir)
        if not (trainer.is_global_zero or isinstance(trainer.strategy, Sharded)):
            return
        batch = next(iter(trainer.val_dataloaders or []), None)
        if batch is not None and is_picture(as_batch(batch).images.shape):
            x, labels = module.prepare(batch)
            some = torch.linspace(0, len(x) - 1, 8).long()
            shown = [t[some].to(module.device) for t in (x, *labels)]
            figure = _reconstructions(module, *shown)
            if trainer.is_global_zero:
                _save(figure, folder / "reconstructions.png")
        _draw_curve(trainer, folder)

    def on_test_end(self, trainer: L.Trainer, module: Any) -> None:
        folder = trainer.log_dir  # asks all processes
        if folder is not None:
            _draw_curve(trainer, Path(folder))

    @torch.no_grad()
    def _sample(self, module: Any) -> Tensor:
        labels, count = None, module.density.num_classes
        if count:
            labels = torch.arange(self.num_samples, device=module.device) % count
        return draw(module, self.num_samples, labels, self.options)[0]


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=150)


def _draw_curve(trainer: L.Trainer, folder: Path) -> None:
    metrics = folder / "metrics.csv"
    if trainer.is_global_zero and metrics.exists():
        test = trainer.callback_metrics.get("test/bits_per_dim")
        _save(
            learning_curve(metrics, None if test is None else float(test)), folder / "curve.png"
        )


@torch.no_grad()
def _reconstructions(module: Any, x: Tensor, *labels: Tensor) -> Figure:
    was_training = module.flow.training
    module.flow.eval()
    z = module.density.inverse(x, *labels)
    back = module.density(z, *labels)
    module.flow.train(was_training)
    error = (back - x).abs().max().item()
    figure = Figure(figsize=(len(x), 3.4), layout="constrained")
    figure.suptitle(f"largest difference between x and x again: {error:.1e} of [-1, 1)")
    rows = {"x": x, "z": latents_as_images(z, x.shape), "x again": back}
    axes = figure.subplots(len(rows), len(x), squeeze=False)
    for row, (name, pictures) in zip(axes, rows.items()):
        row[0].set_ylabel(name)
        for axis, picture in zip(row, pictures):
            pixels = (picture.clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0).cpu().numpy()
            axis.imshow(pixels, "gray", interpolation="nearest", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    return figure
