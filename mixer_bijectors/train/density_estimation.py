"""The LightningModule that fits a flow to images."""

from functools import partial
from typing import Any

import lightning as L
import normflows as nf
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from ..images import add_noise, dequantize
from ..layers.actnorm import ActNorm
from ..models import DensityModel
from ..models.bare_flow import as_density_model
from ..models.bases import use_python_numbers
from ._lightning import averages_buffers, training_loader
from .checks import Batches, as_batch, check_precision, warn_if_scaled, warn_if_untrained
from .data.batches import Batch
from .data.image_data_module import ImageDataModule
from .data.sampling import run_seed, seed_generators
from .described_module import DescribedModule
from .io.errors import RunError
from .labels import drop_labels, labels_for
from .metrics import check_results, make_metrics
from .schedule import Schedule
from .sharding import broadcast_values, shard

__all__ = ["DensityEstimation"]

_FIRST = 16
_SPLITS = ("val", "test")


class DensityEstimation(DescribedModule):
    """Maximum likelihood of 8-bit images, by AdamW with warm-up and a cosine to zero.

    Batches are those of the data modules here, or uint8 images of shape (batch, channels,
    height, width), or pairs of images and labels of shape (batch,). Labels go to flows that are
    class-conditional and to classifiers, and are not looked at otherwise.

    Logs bits per dimension of each split, and in validation and test the reconstruction error:
    the largest difference, on the scale of [-1, 1), between the first images of the split and
    what comes back from their latents. With Gaussian noise the bits are those of noisy images,
    to be compared among runs with the same noise alone. The loss and further metrics are those
    of the model, see `DensityModel`: a `HybridClassifier` logs its accuracy and its expected
    calibration error beside the bits. Models of normflows, `NormalizingFlow` and
    `MultiscaleFlow`, are trained by their bits, and class-conditional ones get labels.

    All random numbers depend on the seed, the step and the images alone: a run that is resumed
    from a checkpoint does what it would have done. Settings are those that the module is made
    with, also where the run of the checkpoint had others.

    Args:
        flow: the model, over images in [-1, 1).
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's decoupled weight decay.
        betas: AdamW's averaging coefficients.
        noise: standard deviation of Gaussian noise that is added to images, on the scale of
            [-1, 1), for samples to be denoised; 0 for uniform dequantisation instead, for
            likelihoods.
        label_dropout: share of training labels that are replaced by -1, the null class, as
            guidance needs.
        compile: run the density through `torch.compile`.
    """

    def __init__(
        self,
        flow: nf.NormalizingFlow | nf.MultiscaleFlow | DensityModel,
        learning_rate: float = 4e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        noise: float = 0.0,
        label_dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not noise >= 0:
            raise ValueError(f"DensityEstimation: noise must not be negative, got {noise}")
        if not 0 <= label_dropout <= 1:
            raise ValueError(
                f"DensityEstimation: label_dropout must be from 0 to 1, got {label_dropout}"
            )
        self.flow: Any = flow
        self.betas = betas
        self.noise = noise
        self.label_dropout = label_dropout
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self._is_initialized = self._is_sharded = self._has_seen_levels = False
        self.labels = self.model.label_range
        self.metrics = nn.ModuleDict(
            {f"{split}_split": make_metrics(self.model.metric_names) for split in _SPLITS}
        )
        self.compile_density = compile
        if compile:
            use_python_numbers(self.flow)
        self._compiled = torch.compile(self._loss_and_metrics) if compile else None

    @property
    def model(self) -> Any:
        """The flow as a `DensityModel`, which answers for itself in training."""
        return as_density_model(self.flow)

    @property
    def density(self) -> Any:
        """The model of images alone, without a classifier."""
        return self.model.density

    def _loss_and_metrics(self, x: Tensor, *labels: Tensor) -> Any:
        return self.model.loss_and_metrics(x, *labels)

    def _run(self, x: Tensor, *labels: Tensor) -> Any:
        results = (self._compiled or self._loss_and_metrics)(x, *labels)
        return check_results(self.model, results, len(x))

    def setup(self, stage: str) -> None:
        check_precision(self.trainer)
        for layer in self.flow.modules() if stage == "fit" else ():
            if isinstance(layer, ActNorm):
                layer.warns = False  # Lightning tries a validation before it trains
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, ImageDataModule):
            datamodule.labels = self.labels
            if getattr(self.trainer, "overfit_batches", 0):
                raise RunError(
                    "overfit_batches puts images in another order; use limit_train_batches"
                )
        for callback in self._callbacks():
            if isinstance(callback, WeightAveraging) and averages_buffers(callback):
                # The average of an index is no index: shifted layers would read wrong pixels.
                raise RunError(
                    f"{type(callback).__name__}: set use_buffers to false, since buffers of "
                    "these models are not to be averaged"
                )

    def _callbacks(self) -> list[L.Callback]:
        return getattr(self.trainer, "callbacks", [])

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is None or self._is_sharded:
            return
        averaging = [c for c in self._callbacks() if isinstance(c, WeightAveraging)]
        if averaging:
            raise RunError(
                f"{type(averaging[0]).__name__} cannot average a model that is sharded; leave "
                "it out, or use the strategy ddp"
            )
        strategy, precision = self.trainer.strategy, self.trainer.precision_plugin
        broadcast_values(self.flow, strategy.root_device)
        has_actnorm = any(
            isinstance(m, ActNorm | nf.flows.ActNorm) for m in self.flow.modules()
        )
        if has_actnorm and self.trainer.state.fn == "fit":
            # The first batch runs now, in the precision and on the device that Lightning sets
            # later, since what a sharded layer writes into its parameters while it runs is
            # lost.
            precision.convert_module(self)
            self.to(strategy.root_device)
            loader = training_loader(self.trainer)
            batch = strategy.batch_to_device(as_batch(next(iter(loader))), strategy.root_device)
            x, labels = self.prepare(batch)
            with torch.no_grad(), precision.train_step_context():
                self.density.log_prob(x, *labels)
        shard(self.flow, self.density.flows, mesh["data_parallel"])
        self._is_sharded = True

    def on_validation_start(self) -> None:
        # Before a fit, Lightning tries the validation of a model that is yet to be trained.
        if not self.trainer.sanity_checking:
            warn_if_untrained(self.flow)

    def on_test_start(self) -> None:
        warn_if_untrained(self.flow)

    def on_train_start(self) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, Schedule):
                config.scheduler.go_on_with(**self._optimizer_settings())

    def on_train_batch_start(self, batch: Batches, batch_idx: int) -> None:
        # So the global generator draws what it would in a run that was never interrupted.
        rank = self.trainer.global_rank
        seed_generators(run_seed(), self.current_epoch, batch_idx, rank)
        if self.compile_density and not self._is_initialized:
            # ActNorm is initialised by its first batch here, outside of the compiled graph.
            x, labels = self.prepare(batch)
            with torch.no_grad():
                self.density.log_prob(x, *labels)
        self._is_initialized = True

    def _checked(self, batch: Batches) -> Batch:
        """A batch of any data module, with a warning if the first one seems to be scaled."""
        batch = as_batch(batch)
        if not self._has_seen_levels:
            self._has_seen_levels = True
            warn_if_scaled(batch.images)
        return batch

    def training_step(self, batch: Batches, batch_idx: int) -> Tensor:
        batch = self._checked(batch)
        if self.labels is not None and batch.labels is None:
            raise RunError("the model is trained with labels, and the images have none")
        x = self.scale(batch)
        labels = self._labels(batch)
        if self.labels is not None and -1 in self.labels:
            labels = tuple(drop_labels(y, self.label_dropout, batch.seeds) for y in labels)
        loss, metrics = self._run(x, *labels)
        for name, values in metrics.items():
            if values.dim() == 1:  # whose mean counts
                self.log(
                    f"train/{name}",
                    values.mean(),
                    batch_size=len(x),
                    sync_dist=True,
                    prog_bar=True,
                )
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # It keeps the residual flows of normflows invertible, and does nothing to other models.
        # It runs here, since a checkpoint may be written right after the step.
        nf.utils.update_lipschitz(self.flow, 5)

    def validation_step(self, batch: Batches, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batches, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, split: str, batch: Batches, batch_idx: int) -> None:
        batch = self._checked(batch)
        # Seeded by the images, so that epochs, models and numbers of processes are compared on
        # equal random numbers.
        seed_generators(*(batch.indices[:1] or [batch_idx]))
        x, labels = self.scale(batch), self._labels(batch)
        kept: Any = slice(None)
        if any(batch.padding):  # as a list, it would be copied with a synchronisation
            kept = torch.tensor(batch.kept, dtype=torch.long).to(x.device, non_blocking=True)
            padding = torch.tensor(batch.padding).to(x.device, non_blocking=True)
            labels = tuple(y.masked_fill(padding, 0) for y in labels)  # which may have none
        _, values = self._run(x, *labels)
        metrics: Any = self.metrics[f"{split}_split"]
        for name, metric in metrics.items():
            metric.update(values[name][kept])
            self.log(f"{split}/{name}", metric, prog_bar=True, batch_size=len(x))
        if batch_idx == 0:  # the way back of autoregressive models takes its time
            x, labels = x[:_FIRST], tuple(y[:_FIRST] for y in self.flow_labels(batch))
            z, _ = self.density.inverse_and_log_det(x, *labels)
            error = (self.density(z, *labels) - x).abs().max()
            self.log(
                f"{split}/reconstruction_error",
                error,
                reduce_fx="max",
                sync_dist=True,
                batch_size=len(x),
            )

    def prepare(self, batch: Batches) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Images in [-1, 1), and the labels if the density takes them."""
        batch = as_batch(batch)
        return self.scale(batch), self.flow_labels(batch)

    def scale(self, batch: Batch) -> Tensor:
        """Images in [-1, 1), with noise or dequantised."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        scale = partial(add_noise, sigma=self.noise) if self.noise else dequantize
        return scale(batch.images, dtype=dtype, seeds=batch.seeds or None)

    def flow_labels(self, batch: Batch) -> tuple[Tensor, ...]:
        """The labels if the density takes them, -1 for images without."""
        return labels_for(self.density, batch, label_dropout=self.label_dropout)

    def _labels(self, batch: Batch) -> tuple[Tensor, ...]:
        """The labels if the loss takes them."""
        return labels_for(self.model, batch, label_dropout=self.label_dropout)

    def _optimizer_settings(self) -> dict[str, Any]:
        return {
            "lr": self.learning_rate,
            "weight_decay": self.weight_decay,
            "betas": tuple(self.betas),
        }

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), **self._optimizer_settings())
        schedule = Schedule.of_warmup_and_cosine(
            optimizer, self.warmup_steps, lambda: self.trainer.estimated_stepping_batches
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
