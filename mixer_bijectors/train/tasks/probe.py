"""The task `probe`: how much a linear classifier makes of embeddings."""

import lightning as L
import numpy as np

from ..data.image_data_module import ImageDataModule
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from .embed import embeddings
from .linear_probe import linear_probe
from .output import Output
from .prediction import predict_images

__all__ = ["probe"]


def probe(
    trainer: L.Trainer,
    model: DensityEstimation,
    datamodule: ImageDataModule,
    ckpt_path: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Accuracy on test images of a linear classifier of frozen embeddings.

    Args:
        trainer: where embeddings are computed.
        model: the model, from the config.
        datamodule: images with labels.
        ckpt_path: a checkpoint of `fit`.
        output: npz file of the accuracy; by default `results/probe.npz` in the folder of the
            run.
        overwrite: replace a file that is there.
    """
    with Output(trainer, model, ckpt_path, output, "probe.npz", overwrite=overwrite) as out:
        features = []
        for split in ("train", "test"):
            embedded = predict_images(out, embeddings, datamodule, split)
            if not embedded:
                continue
            if "labels" not in embedded:
                raise RunError("a probe needs labels, and the images have none")
            if unknown := int((embedded["labels"] < 0).sum()):
                raise RunError(
                    f"a probe needs labels, and {unknown} of the {split} images have none"
                )
            features.append((embedded["embeddings"], embedded["labels"]))
        if features:
            accuracy = linear_probe(*features)
            out.write_npz(
                {"accuracy": np.array(accuracy)}, f"accuracy of a linear probe {accuracy:.4f}"
            )
