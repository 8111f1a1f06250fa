"""Modules whose checkpoints say by themselves what they are of."""

from typing import Any

import lightning as L

from ._lightning import trainer_of
from .data.image_data_module import ImageDataModule

__all__ = ["DescribedModule"]


class DescribedModule(L.LightningModule):
    """A module whose checkpoints hold its configuration and the names of its classes.

    Attributes:
        config: the configuration of the run as YAML, None if there is none.
        class_names: names of the classes in the order of their labels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config: str | None = None
        self.class_names: list[str] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the configuration into the checkpoint, as plain text, and the classes."""
        data = getattr(self.trainer, "datamodule", None)
        if self.class_names is None and isinstance(data, ImageDataModule):
            names = data.class_names
            self.class_names = None if names is None else [str(name) for name in names]
        for key, value in (("config", self.config), ("class_names", self.class_names)):
            if value is not None:
                checkpoint[key] = value

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.class_names = checkpoint.get("class_names")
        data = getattr(trainer_of(self), "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.known_classes = self.class_names

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
