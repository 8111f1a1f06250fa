"""Trained models, read from a run, from a checkpoint or from an exported file alone."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser

from .density_estimation import DensityEstimation
from .io.checkpoints import checkpoint_in, load_checkpoint, load_state
from .io.configurations import configuration_of
from .io.errors import RunError
from .tasks.weights import load_weights

__all__ = ["TrainedModel", "load"]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with all that is known of its training; see `load`.

    Attributes:
        model: the flow or classifier, in evaluation mode.
        module: the `DensityEstimation` that holds it, for `FlowTrainer` and its tasks.
        classes: names of the classes in the order of their labels, None where there are none.
        data: the data settings, a class path and its `init_args`; see `datamodule`.
        config: the whole configuration of the run.
        path: the file that was read.
    """

    model: Any
    module: DensityEstimation = field(repr=False)
    classes: tuple[str, ...] | None
    data: dict[str, Any] | None
    config: dict[str, Any] = field(repr=False)
    path: Path

    def label(self, name: str) -> int:
        """The label of a class.

        Raises:
            RunError: the model has no class of this name.
        """
        if name not in (self.classes or ()):
            raise RunError(f"{self.path} has no class {name!r}, but {self.classes}")
        return (self.classes or ()).index(name)

    def datamodule(self, **options: Any) -> Any:
        """The data module of the run, with some of its arguments replaced by `options`."""
        if not self.data:
            raise RunError(f"{self.path} holds no data settings; make a data module yourself")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(L.LightningDataModule, "data", fail_untyped=False)
        arguments = (self.data.get("init_args") or {}) | options
        settings = {"class_path": self.data["class_path"], "init_args": arguments}
        return parser.instantiate_classes(parser.parse_object({"data": settings})).data


def load(
    run: str | os.PathLike[str], map_location: Any = "cpu", **options: Any
) -> TrainedModel:
    """Read a trained model, of a run's folder, of a checkpoint, or of an exported file.

    The configuration is part of the file. Its class paths are imported, as those of a config
    are, so that a file should be of someone whose configs you would run; weights are read as
    tensors alone.

    Args:
        run: the folder of a run, of which the best checkpoint is taken (the last one if there
            is no best one); or a checkpoint; or what `mixer-bijectors export` has written.
        map_location: the device that the model is for.
        options: arguments of `DensityEstimation`, in place of those of the run.

    Raises:
        RunError: there is no such run, or it holds no configuration, or other weights.

    Example:
        ```python
        trained = mixer_bijectors.train.load("runs/photos/version_0")
        images, log_prob = trained.model.sample(16)
        ```
    """
    path = checkpoint_in(run)
    exported = path.suffix == ".safetensors"
    if exported:
        weights, text, names = _read_exported(path)
    else:
        checkpoint = load_checkpoint(path)
        weights, names = checkpoint.get("state_dict") or {}, checkpoint.get("class_names")
        text = configuration_of(path, checkpoint)
    if text is None:
        raise RunError(
            f"{path} holds no configuration, and is not in the folder of a run; build the "
            "model and load its weights into it"
        )
    config = yaml.safe_load(text)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DensityEstimation, "model", fail_untyped=False)
    parsed = parser.parse_object({"model": config["model"] | options})
    module: DensityEstimation = parser.instantiate_classes(parsed).model
    if any(value.dtype == torch.float64 for value in weights.values()):
        module.double()
    if exported:
        load_state(module.flow, weights, path)
    else:
        load_weights(module, path)
    module.config, module.class_names = text, names
    module.to(map_location).eval()
    classes = None if names is None else tuple(names)
    return TrainedModel(module.flow, module, classes, config.get("data"), config, path)


def _read_exported(path: Path) -> tuple[dict[str, Any], str | None, list[str] | None]:
    """Weights, configuration and names of classes of an exported file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged, or no safetensors file") from error
    return weights, about.get("config"), json.loads(about.get("class_names", "null"))
