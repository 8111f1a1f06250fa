"""The task `embed`: latents of images, for other models to learn from."""

import lightning as L
from torch import Tensor

from ..data.batches import Batch
from ..data.image_data_module import ImageDataModule
from ..density_estimation import DensityEstimation
from .output import Output
from .prediction import predict_images

__all__ = ["embed", "embeddings"]


def embed(
    trainer: L.Trainer,
    model: DensityEstimation,
    datamodule: ImageDataModule,
    ckpt_path: str | None = None,
    output: str | None = None,
    split: str = "test",
    overwrite: bool = False,
) -> None:
    """Write the embeddings of images, their latents, as npz or safetensors.

    Args:
        model: the model, from the config.
        datamodule: the images.
        ckpt_path: a checkpoint of `fit`.
        output: the file, .npz or .safetensors, of `embeddings` (images, dimensions),
            `labels` if there are any, and `index`, the position of each in the split; by
            default `results/embeddings.npz` in the folder of the run.
        split: 'train', 'val' or 'test'.
        overwrite: replace a file that is there.
    """
    with Output(
        *(trainer, model, ckpt_path, output, "embeddings.npz", ".safetensors"),
        overwrite=overwrite,
    ) as out:
        embedded = predict_images(out, embeddings, datamodule, split)
        if not embedded:
            return
        note = "{} embeddings of {} dimensions".format(*embedded["embeddings"].shape)
        if out.path.suffix == ".npz":
            out.write_npz(embedded, note)
            return
        from safetensors.numpy import save

        out.write(lambda draft: draft.write_bytes(save(embedded)), note)


def embeddings(model: DensityEstimation, batch: Batch) -> dict[str, Tensor]:
    """Latents of images, each level at its middle: an embedding without noise."""
    x = ((batch.images + 0.5) / 128 - 1).to(model.dtype)
    return {"embeddings": model.density.embed(x, *model.flow_labels(batch))}
