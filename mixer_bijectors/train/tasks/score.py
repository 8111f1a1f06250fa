"""The task `score`: bits per dimension of images, and anomalies by them."""

from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ...images import bits_per_dim
from ..data.batches import Batch
from ..data.image_data_module import ImageDataModule
from ..data.images import Images
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from .anomaly import anomaly_scores, auroc, complexity
from .output import Output
from .prediction import predict_images

__all__ = ["images_like", "score", "scores"]


def score(
    trainer: L.Trainer,
    model: DensityEstimation,
    datamodule: ImageDataModule,
    ckpt_path: str | None = None,
    output: str | None = None,
    split: str = "test",
    anomalies: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the bits per dimension of each image as csv or parquet, and AUROCs.

    Args:
        model: the model, from the config.
        datamodule: the images.
        ckpt_path: a checkpoint of `fit`.
        output: the table, .csv or .parquet; by default `results/scores.csv` in the folder of
            the run.
        split: 'train', 'val' or 'test'.
        anomalies: folder or dataset of images to be told from these by their scores, for
            which a class-conditional model gets no labels, of either.
        overwrite: replace a file that is there.
    """
    # By its name, the images of a set, and whether they are compressed.
    sets = {split: (datamodule, split, anomalies is not None)}
    if anomalies is not None:
        shape = model.density.image_shape
        if shape is None:
            raise RunError(
                "the model does not say of what shape its images are; give it an attribute "
                "image_shape, (channels, height, width)"
            )
        others = images_like(datamodule, anomalies, shape)
        if trainer.is_global_zero:
            others.prepare_data()  # which may not be there
        sets |= {"anomalies": (others, "test", True), "typical": (datamodule, "val", False)}
    with Output(
        *(trainer, model, ckpt_path, output, "scores.csv", ".parquet"), overwrite=overwrite
    ) as out:
        labelled = anomalies is None
        tables: dict[str, Any] = {}
        for name, (data, part, compressed) in sets.items():
            compute = partial(scores, compressed=compressed, labelled=labelled)
            values = predict_images(out, compute, data, part, name=name, labelled=labelled)
            names = [data.sources[part].name(int(index)) for index in values.get("index", ())]
            tables[name] = {"image": names} | values
        if not trainer.is_global_zero:
            return
        mean = np.sort(tables[split]["bits_per_dim"]).mean()
        if anomalies is not None:
            typical = float(np.mean(tables.pop("typical")["bits_per_dim"]))
            for values in tables.values():
                bits, size = (torch.tensor(values[k]) for k in ("bits_per_dim", "complexity"))
                values |= anomaly_scores(bits, size, typical)
            inside, outside = tables.values()
            for name in ("bits_per_dim", "ratio", "typicality"):
                print(f"AUROC by {name} {auroc(inside[name], outside[name]):.4f}")
        from datasets import Dataset, concatenate_datasets
        from pyarrow import parquet

        rows = concatenate_datasets(
            [
                Dataset.from_dict({"set": [name] * len(values["index"])} | values)
                for name, values in tables.items()
            ]
        )
        number, of = len(tables[split]["index"]), len(datamodule.source(split))
        images = f"{number}" if number == of else f"{number} of {of}"
        print(f"{mean:.4f} bits per dimension, mean of {images} images")
        # Methods of `rows` that write would show a second progress bar.
        table = rows.with_format("arrow")[:]
        if out.path.suffix == ".csv":
            write = partial(table.to_pandas().to_csv, index=False)
        else:
            write = partial(parquet.write_table, table)
        out.write(write, f"scores of {len(rows)} images")


def scores(
    model: DensityEstimation, batch: Batch, *, compressed: bool, labelled: bool
) -> dict[str, Tensor]:
    """Bits per dimension of images, and their complexity, which takes some time."""
    x, labels = model.prepare(batch if labelled else batch._replace(labels=None))
    bits = bits_per_dim(model.model.log_prob(x, *labels), x.shape[1:])
    size = {"complexity": complexity(batch.images)} if compressed else {}
    return {"bits_per_dim": bits} | size


def images_like(data: ImageDataModule, path: str, shape: tuple[int, int, int]) -> Images:
    """All images of another path, read as those of `data` are."""
    return Images(
        path,
        shape,
        data.batch_size,
        data.num_workers,
        test_split="all",
        resize=data.resize if isinstance(data, Images) else "crop",
        permute_seed=data.permute_seed,
        on_bad_image=data.on_bad_image,
    )
