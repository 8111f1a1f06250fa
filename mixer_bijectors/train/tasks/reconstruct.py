"""The task `reconstruct`: images, their latents, and the images computed from the latents."""

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ...images import quantize
from ..data.batches import Batch
from ..data.image_data_module import ImageDataModule
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from .output import Output
from .pictures import latents_as_images
from .prediction import predict_images

__all__ = ["reconstruct", "reconstructions"]


def reconstruct(
    trainer: L.Trainer,
    model: DensityEstimation,
    datamodule: ImageDataModule,
    ckpt_path: str | None = None,
    output: str | None = None,
    split: str = "test",
    num_images: int = 8,
    overwrite: bool = False,
) -> None:
    """Send images to their latents and back: a picture of all three as png, and npz.

    Args:
        model: the model, from the config.
        datamodule: the images.
        ckpt_path: a checkpoint of `fit`.
        output: the npz file, with the picture beside it; by default
            `results/reconstructions.npz` in the folder of the run.
        split: 'train', 'val' or 'test'.
        num_images: number of images, the first of the split.
        overwrite: replace files that are there.

    The npz file holds `images` and `reconstructions`, 8-bit, the `latents` as the model
    gives them, and for each image `error`, the largest difference on the scale of [-1, 1).
    """
    if num_images < 1:
        raise RunError(f"reconstruct: num_images must be at least 1, got {num_images}")
    name = "reconstructions.npz"
    with Output(
        trainer, model, ckpt_path, output, name, pictures=True, overwrite=overwrite
    ) as out:
        result = predict_images(out, reconstructions, datamodule, split, size=num_images)
        if not result:
            return
        images, back = result["images"], result["reconstructions"]
        error = result["error"].max()
        out.write_npz(
            result, f"{len(images)} images, largest difference {error:.1e} of [-1, 1)"
        )
        z = quantize(latents_as_images(torch.from_numpy(result["latents"]), images.shape))
        rows = torch.from_numpy(np.concatenate([images, z.numpy(), back]))
        out.write_picture(rows, len(images), "rows are images, latents, and what comes back")


def reconstructions(model: DensityEstimation, batch: Batch) -> dict[str, Tensor]:
    """Images, their latents, the reconstructions from these, and the largest error of each."""
    x, labels = model.prepare(batch)
    z = model.density.inverse(x, *labels)
    back = model.density(z, *labels)
    return {
        "images": batch.images,
        "latents": z,
        "reconstructions": quantize(back),
        "error": (back - x).abs().flatten(1).amax(1),
    }
