"""The LightningModule that fits a flow to images."""

import math
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import lightning as L
import normflows as nf
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ..images import add_noise, bits_per_dim, dequantize
from ..layers.actnorm import ActNorm
from ..models import HybridClassifier
from ._lightning import averages_buffers, trainer_of, training_loader
from .checks import Batches, as_batch, check_precision, labels_of, warn_if_untrained
from .data.batches import Batch, run_seed, seed_generators
from .data.image_data_module import ImageDataModule
from .io.errors import RunError
from .metrics import CalibrationError, MeanOverImages
from .schedule import Schedule
from .sharding import agree, shard

__all__ = ["DensityEstimation"]

_FIRST = 16
_SPLITS = ("val", "test")


class DensityEstimation(L.LightningModule):
    """Maximum likelihood of 8-bit images, by AdamW with warm-up and a cosine to zero.

    Batches are those of our data modules, or uint8 images of shape (batch, channels, height,
    width), or pairs of images and labels of shape (batch,). Labels go to flows that are
    class-conditional and to classifiers, and are not looked at otherwise.

    Logs bits per dimension of each split, and in validation and test the reconstruction error:
    the largest difference, on the scale of [-1, 1), between the first images of the split and
    what comes back from their latents. With Gaussian noise the bits are those of noisy images,
    to be compared among runs with the same noise alone. A `HybridClassifier` is trained by its
    own loss, and its accuracy and expected calibration error are logged beside the bits.

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
        flow: nf.NormalizingFlow | HybridClassifier,
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
        self.flow = flow
        self.betas = betas
        self.noise = noise
        self.label_dropout = label_dropout
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self._is_initialized = self._is_sharded = self._has_seen_levels = False
        self.is_classifier = isinstance(flow, HybridClassifier)
        classes = getattr(flow, "num_classes", 0)
        self.is_conditional = bool(classes) and not self.is_classifier
        # -1 is the null class.
        self.labels = range(0 if self.is_classifier else -1, classes) if classes else None
        self.metrics = nn.ModuleDict({f"{split}_split": self._metrics() for split in _SPLITS})
        self.compile_density = compile
        # The configuration of the run as YAML, and the names of its classes, see `load`.
        self.config: str | None = None
        self.class_names: list[str] | None = None
        self._compiled = torch.compile(self._eager) if compile else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the configuration into the checkpoint, as plain text, and the classes."""
        data = getattr(self.trainer, "datamodule", None)
        if self.class_names is None and isinstance(data, ImageDataModule):
            names = data.class_names
            self.class_names = None if names is None else [str(name) for name in names]
        for key, value in (("config", self.config), ("class_names", self.class_names)):
            if value is not None:
                checkpoint[key] = value

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = "cpu", **options: Any
    ) -> Any:
        """Read a trained module, of a checkpoint alone or with a `flow` for its weights.

        Args:
            checkpoint_path: the checkpoint.
            map_location: the device that the module is for.
            options: arguments of the class, in place of those that the checkpoint names; with
                `flow` among them the checkpoint needs no configuration.

        Raises:
            RunError: there is no such checkpoint, or it holds no configuration.
        """
        if "flow" in options:
            return super().load_from_checkpoint(
                checkpoint_path, map_location=map_location, weights_only=True, **options
            )
        from .trained import load

        return load(checkpoint_path, map_location, **options).module

    def _eager(self, x: Tensor, *labels: Tensor) -> Any:
        """Log-densities, and logits of a classifier."""
        return self.flow(x) if self.is_classifier else self.flow.log_prob(x, *labels)

    def _run(self, x: Tensor, *labels: Tensor) -> Any:
        return (self._compiled or self._eager)(x, *labels)

    @property
    def density(self) -> Any:
        """The model of images alone, without a classifier."""
        return self.flow.flow if self.is_classifier else self.flow

    def _metrics(self) -> nn.ModuleDict:
        metrics: dict[str, nn.Module] = {"bits_per_dim": MeanOverImages()}
        if self.is_classifier:
            metrics["accuracy"] = MeanOverImages()
            metrics["calibration_error"] = CalibrationError()
        return nn.ModuleDict(metrics)

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.class_names = checkpoint.get("class_names")
        data = getattr(trainer_of(self), "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.known_classes = self.class_names

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
        agree(self.flow, strategy.root_device)
        awaits = any(isinstance(m, ActNorm | nf.flows.ActNorm) for m in self.flow.modules())
        if awaits and self.trainer.state.fn == "fit":
            # Now, in the precision and on the device that Lightning has for later, since what
            # a layer writes into its parameters while it is put together is lost.
            precision.convert_module(self)
            self.to(strategy.root_device)
            loader = training_loader(self.trainer)
            batch = strategy.batch_to_device(as_batch(next(iter(loader))), strategy.root_device)
            x, labels = self.prepare(batch)
            with torch.no_grad(), precision.train_step_context():
                self.density.log_prob(x, *labels)
        shard(self.flow, mesh["data_parallel"])
        self._is_sharded = True

    def on_validation_batch_start(self, batch: Batches, batch_idx: int, *_: int) -> None:
        self._look_at_levels(batch)

    def on_test_batch_start(self, batch: Batches, batch_idx: int, *_: int) -> None:
        self._look_at_levels(batch)

    def _look_at_levels(self, batch: Batches) -> None:
        """Warn of images in [0, 1] that were converted to 8 bits; one host synchronisation."""
        if self._has_seen_levels:
            return
        self._has_seen_levels = True
        images = as_batch(batch).images
        if images.numel() and 0 < images.max() <= 1:
            rank_zero_warn(
                "DensityEstimation: no pixel of the first batch is above 1, but images are "
                "read as 8-bit, from 0 to 255; multiply images in [0, 1] by 255 before they "
                "are converted to uint8"
            )

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
        self._look_at_levels(batch)
        # Whatever draws from the global generator does so as in a run that was never cut off.
        rank = self.trainer.global_rank
        seed_generators(run_seed(), self.current_epoch, batch_idx, rank)
        if self.compile_density and not self._is_initialized:
            # ActNorm takes its first batch here, outside of the compiled graph.
            x, labels = self.prepare(batch)
            with torch.no_grad():
                self.flow.log_prob(x, *labels)
        self._is_initialized = True

    def training_step(self, batch: Batches, batch_idx: int) -> Tensor:
        batch = as_batch(batch)
        if self.is_conditional and batch.labels is None:
            raise RunError("the model is class-conditional, and the images have no labels")
        x, labels = self.prepare(batch)
        options: dict[str, Any] = {
            "batch_size": len(x),
            "sync_dist": True,
            "prog_bar": True,
        }
        if self.is_classifier:
            log_prob, logits = self._run(x)
            given = self._given_labels(batch)
            loss = self.flow.combine(log_prob, logits, given)
            right = (logits.argmax(1) == given).float()
            self.log("train/accuracy", right.mean(), **options)
        else:
            log_prob = self._run(x, *(self._drop(y, batch.seeds) for y in labels))
            loss = None
        bits = bits_per_dim(log_prob, x.shape[1:]).mean()
        self.log("train/bits_per_dim", bits, **options)
        return bits if loss is None else loss

    def _given_labels(self, batch: Batch) -> Tensor:
        labels = labels_of(batch)
        if labels is None:
            raise RunError("a classifier needs labels, and the images have none")
        return labels.long()

    def _drop(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Labels, some of them replaced by -1."""
        if not self.label_dropout:
            return labels
        if seeds:
            draws = torch.tensor([Random(f"label {seed}").random() for seed in seeds])
            draws = draws.to(labels.device, non_blocking=True)
        else:
            draws = torch.rand(labels.shape, device=labels.device)
        return labels.masked_fill(draws < self.label_dropout, -1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # What keeps the residual flows of normflows invertible; nothing for other models. Here,
        # as a checkpoint may be written right after the step.
        nf.utils.update_lipschitz(self.flow, 5)

    def validation_step(self, batch: Batches, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batches, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, split: str, batch: Batches, batch_idx: int) -> None:
        batch = as_batch(batch)
        # The same random numbers every time, so that epochs, models and numbers of processes
        # compare on the same.
        seed_generators(*(batch.indices[:1] or [batch_idx]))
        x, labels = self.prepare(batch)
        metrics: Any = self.metrics[f"{split}_split"]
        kept: Any = slice(None)
        if any(batch.padding):  # as a list, it would be copied with a synchronisation
            kept = torch.tensor(batch.kept, dtype=torch.long).to(x.device, non_blocking=True)
        if self.is_classifier:
            log_prob, logits = self._run(x)
            given = self._given_labels(batch)
            metrics["accuracy"].update((logits.argmax(1) == given).float()[kept])
            metrics["calibration_error"].update(logits[kept], given[kept])
        else:
            log_prob = self._run(x, *labels)
        metrics["bits_per_dim"].update(bits_per_dim(log_prob, x.shape[1:])[kept])
        for name, metric in metrics.items():
            self.log(f"{split}/{name}", metric, prog_bar=True, batch_size=len(x))
        if batch_idx == 0:  # the way back of autoregressive models takes its time
            x, labels = x[:_FIRST], tuple(y[:_FIRST] for y in labels)
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
        """Images in [-1, 1), and the labels if the flow takes them."""
        batch = as_batch(batch)
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        scale = partial(add_noise, sigma=self.noise) if self.noise else dequantize
        x = scale(batch.images, dtype=dtype, seeds=batch.seeds or None)
        return x, self.flow_labels(batch)

    def flow_labels(self, batch: Batch) -> tuple[Tensor, ...]:
        """The labels if the flow takes them, -1 for images without."""
        if not self.is_conditional:
            return ()
        labels = labels_of(batch)
        if labels is None:
            if not self.label_dropout:
                rank_zero_warn(
                    "the images have no labels and get -1, the null class, for which the model "
                    "was not trained, as its label_dropout is 0"
                )
            count = len(batch.images)
            return (torch.full((count,), -1, device=batch.images.device),)
        return (labels.long(),)

    def _optimizer_settings(self) -> dict[str, Any]:
        return {
            "lr": self.learning_rate,
            "weight_decay": self.weight_decay,
            "betas": tuple(self.betas),
        }

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), **self._optimizer_settings())

        def factor(step: int) -> float:
            warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
            if not step:
                # Lightning counts the steps of epochs by making the loader, which must not be
                # before a checkpoint has told it where to go on.
                return warmup
            total = self.trainer.estimated_stepping_batches
            return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

        scheduler = Schedule(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
