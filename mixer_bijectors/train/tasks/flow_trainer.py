"""What a trained model is for: samples, embeddings, scores, reconstructions."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from ...images import bits_per_dim, quantize, save_grid
from ...models import ImageFlow, TarFlow
from ...models.denoising import denoise
from ..callbacks.sample_pictures import latents_as_images
from ..data.batches import Batch
from ..data.image_data_module import ImageDataModule, TensorSource
from ..data.images import Images
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from ..io.files import make_folder, replacing
from .anomaly import anomaly_scores, auroc, complexity
from .linear_probe import linear_probe
from .parts import Arrays, compute_in_parts, load_weights, remove_parts

__all__ = ["FlowTrainer"]


class FlowTrainer(L.Trainer):
    """Lightning's Trainer, and what else a trained model of images is for.

    Each task reads the weights of a checkpoint of `fit`, the averaged ones if there are any,
    and computes batch by batch on the trainer's devices. Beside its output it keeps what is
    done, and when it is started again after a crash it goes on from there.
    """

    def sample(
        self,
        model: DensityEstimation,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str = "samples.npz",
        num_samples: int = 64,
        batch_size: int = 64,
        temperature: float = 1.0,
        classes: list[int] | None = None,
        guidance: float = 0.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Draw images: a grid as png, and an npz file of images, log-densities and labels.

        Args:
            model: the model, from the config.
            datamodule: not looked at.
            ckpt_path: a checkpoint of `fit`.
            output: the npz file; the grid is written beside it.
            num_samples: number of images.
            batch_size: images drawn at once.
            temperature: scale of the base's standard deviation.
            classes: classes to draw in turn; by default all of a class-conditional model.
            guidance: weight of the guidance of a TarFlow.
            options: what else the model's `sample` takes.
        """
        _check_suffix(output, ".npz")
        flow = model.density
        if not isinstance(flow, ImageFlow):
            raise RunError(f"{type(flow).__name__}: only models of images draw samples")
        if num_samples < 1:
            raise RunError(f"sample: num_samples must be at least 1, got {num_samples}")
        if twice := {"temperature", "guidance", "num_samples"} & set(options or {}):
            raise RunError(
                f"sample: {min(twice)} does not go into options; pass --{min(twice)}"
            )
        given = {"temperature": temperature} | (options or {})
        if guidance:
            if not isinstance(flow, TarFlow):
                raise RunError(f"{type(flow).__name__} has no guidance; leave it out")
            given["guidance"] = guidance
        if classes is not None and not model.is_conditional:
            raise RunError("the model is not class-conditional; leave out classes")
        if classes is not None and not 0 < len(classes) <= num_samples:
            raise RunError(
                f"sample: classes must name from 1 to num_samples={num_samples} classes, which "
                f"are drawn in turn, got {len(classes)}"
            )
        if model.is_conditional:
            classes = classes or list(range(flow.num_classes))
            if unknown := sorted(set(classes) - set(range(-1, flow.num_classes))):
                raise RunError(
                    f"the model has no class {unknown[0]}, but {flow.num_classes} from 0, and "
                    "-1, the null class"
                )

        def draw(batch: Batch) -> dict[str, Tensor]:
            x, log_prob = flow.sample(len(batch.images), batch.labels, **given)
            if model.noise:
                x = denoise(flow, x, model.noise, batch.labels)
            # A pixel that is not a number would become a black one.
            fine = x.flatten(1).isfinite().all(1)
            return {"images": quantize(x), "log_prob": log_prob.where(fine, torch.nan)}

        data = _Requests(num_samples, classes, batch_size)
        drawn = compute_in_parts(
            self, model, draw, data, ckpt_path, output, task=["sample", given, classes]
        )
        if self.is_global_zero:
            del drawn["index"]
            _write_npz(output, drawn, drawn["images"])

    def embed(
        self,
        model: DensityEstimation,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        output: str = "embeddings.npz",
        split: str = "test",
    ) -> None:
        """Write the embeddings of images, their latents, as npz or safetensors.

        Args:
            model: the model, from the config.
            datamodule: the images.
            ckpt_path: a checkpoint of `fit`.
            output: the file, .npz or .safetensors, of `embeddings` (images, dimensions),
                `labels` if there are any, and `index`, the position of each in the split.
            split: 'train', 'val' or 'test'.
        """
        _check_suffix(output, ".npz", ".safetensors")
        embedded = self._embed(model, datamodule, ckpt_path, output, split)
        if not self.is_global_zero:
            return
        if output.endswith(".npz"):
            _write_npz(output, embedded)
            return
        from safetensors.numpy import save

        with replacing(output) as draft:
            draft.write_bytes(save(embedded))
        _finish(output)

    def probe(
        self,
        model: DensityEstimation,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        output: str = "probe.npz",
    ) -> None:
        """Accuracy on test images of a linear classifier of frozen embeddings.

        Args:
            model: the model, from the config.
            datamodule: images with labels.
            ckpt_path: a checkpoint of `fit`.
            output: npz file of the accuracy.
        """
        _check_suffix(output, ".npz")
        features = {}
        for split in ("train", "test"):
            part = f"{output}.{split}"
            embedded = self._embed(model, datamodule, ckpt_path, part, split)
            if not self.is_global_zero:
                continue
            if "labels" not in embedded:
                raise RunError("a probe needs labels, and the images have none")
            if unknown := int((embedded["labels"] < 0).sum()):
                raise RunError(
                    f"a probe needs labels, and {unknown} of the {split} images have none"
                )
            features[split] = (embedded["embeddings"], embedded["labels"])
        if features:
            accuracy = linear_probe(features["train"], features["test"])
            print(f"accuracy of a linear probe {accuracy:.4f}")
            _write_npz(output, {"accuracy": np.array(accuracy)})

    def score(
        self,
        model: DensityEstimation,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        output: str = "scores.csv",
        split: str = "test",
        anomalies: str | None = None,
    ) -> None:
        """Write the bits per dimension of each image as csv or parquet, and AUROCs.

        Args:
            model: the model, from the config.
            datamodule: the images.
            ckpt_path: a checkpoint of `fit`.
            output: the table, .csv or .parquet.
            split: 'train', 'val' or 'test'.
            anomalies: folder or dataset of images to be told from these by their scores, for
                which a class-conditional model gets no labels, of either.
        """
        _check_suffix(output, ".csv", ".parquet")
        alone = anomalies is None
        score = partial(self._score, model, ckpt_path, labelled=alone)
        if anomalies is not None:
            others = _like(datamodule, anomalies, model.density.image_shape)
            if self.is_global_zero:
                others.prepare_data()  # which may not be there
        tables = {split: score(datamodule, output, split, not alone)}
        if anomalies is not None:
            tables["anomalies"] = score(others, f"{output}.anomalies", "test", True)
            held_out = score(datamodule, f"{output}.typical", "val", False)
        if not self.is_global_zero:
            return
        if anomalies is not None:
            typical = float(np.mean(held_out["bits_per_dim"]))
            for table in tables.values():
                bits, size = (torch.tensor(table[k]) for k in ("bits_per_dim", "complexity"))
                table |= anomaly_scores(bits, size, typical)
            inside, outside = tables.values()
            for name in ("bits_per_dim", "ratio", "typicality"):
                print(f"AUROC by {name} {auroc(inside[name], outside[name]):.4f}")
        from datasets import Dataset, concatenate_datasets

        rows = concatenate_datasets(
            [
                Dataset.from_dict({"set": [name] * len(table["index"])} | table)
                for name, table in tables.items()
            ]
        )
        with replacing(output) as draft:
            (rows.to_csv if output.endswith(".csv") else rows.to_parquet)(draft)
        mean = np.sort(tables[split]["bits_per_dim"]).mean()
        number, of = len(tables[split]["index"]), len(datamodule.source(split))
        images = f"{number}" if number == of else f"{number} of {of}"
        print(f"{mean:.4f} bits per dimension, mean of {images} images")
        _finish(output)

    def reconstruct(
        self,
        model: DensityEstimation,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        output: str = "reconstructions.npz",
        split: str = "test",
        num_images: int = 8,
    ) -> None:
        """Send images to their latents and back: a picture of all three as png, and npz.

        Args:
            model: the model, from the config.
            datamodule: the images.
            ckpt_path: a checkpoint of `fit`.
            output: the npz file; the picture is written beside it.
            split: 'train', 'val' or 'test'.
            num_images: number of images, the first of the split.

        The npz file holds `images` and `reconstructions`, 8-bit, the `latents` as the model
        gives them, and for each image `error`, the largest difference on the scale of [-1, 1).
        """
        _check_suffix(output, ".npz")
        if num_images < 1:
            raise RunError(f"reconstruct: num_images must be at least 1, got {num_images}")
        flow = model.density

        def reconstruct(batch: Batch) -> dict[str, Tensor]:
            x, labels = model.prepare(batch)
            z = flow.inverse(x, *labels)
            back = flow(z, *labels)
            error = (back - x).abs().flatten(1).amax(1)
            return {
                "images": batch.images,
                "latents": z,
                "reconstructions": quantize(back),
                "error": error,
            }

        result = compute_in_parts(
            self,
            model,
            reconstruct,
            datamodule,
            ckpt_path,
            output,
            split=split,
            size=num_images,
            task=["reconstruct"],
        )
        if not self.is_global_zero:
            return
        images, back = result["images"], result["reconstructions"]
        latents = quantize(latents_as_images(torch.from_numpy(result["latents"]), images.shape))
        print(f"largest difference {result['error'].max():.1e} of [-1, 1)")
        rows = np.concatenate([images, latents.numpy(), back])
        _write_npz(output, result, rows, columns=len(images))

    def export(
        self,
        model: DensityEstimation,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str = "model.safetensors",
    ) -> None:
        """Write the weights of the model as safetensors, with its configuration, for `load`.

        Args:
            model: the model, from the config.
            datamodule: not looked at.
            ckpt_path: a checkpoint of `fit`.
            output: the safetensors file.
        """
        _check_suffix(output, ".safetensors")
        load_weights(model, ckpt_path)
        make_folder(Path(output).resolve().parent)
        from safetensors.torch import save

        state = {key: value.clone() for key, value in model.flow.state_dict().items()}
        about = {} if model.config is None else {"config": model.config}
        if model.class_names is not None:
            about["class_names"] = json.dumps(model.class_names)
        with replacing(output) as draft:
            draft.write_bytes(save(state, metadata=about))
        _finish(output)

    def _embed(
        self,
        model: DensityEstimation,
        data: ImageDataModule,
        ckpt_path: str | None,
        output: str,
        split: str,
    ) -> Arrays:
        def embed(batch: Batch) -> dict[str, Tensor]:
            # Each level at its middle: an embedding without noise.
            x = ((batch.images + 0.5) / 128 - 1).to(model.dtype)
            return {"embeddings": model.density.embed(x, *model.flow_labels(batch))}

        return compute_in_parts(
            self, model, embed, data, ckpt_path, output, split=split, task=["embed"]
        )

    def _score(
        self,
        model: DensityEstimation,
        ckpt_path: str | None,
        data: ImageDataModule,
        output: str,
        split: str,
        compressed: bool,
        labelled: bool,
    ) -> dict[str, Any]:
        def score(batch: Batch) -> dict[str, Tensor]:
            x, labels = model.prepare(batch if labelled else batch._replace(labels=None))
            bits = bits_per_dim(model.density.log_prob(x, *labels), x.shape[1:])
            scores = {"bits_per_dim": bits}
            if compressed:  # takes longer than some models
                scores["complexity"] = complexity(batch.images)
            return scores

        task = ["score", compressed, labelled]
        scores = compute_in_parts(
            self,
            model,
            score,
            data,
            ckpt_path,
            output,
            split=split,
            task=task,
            labelled=labelled,
        )
        if not scores:
            return {}
        names = [data.sources[split].name(int(index)) for index in scores["index"]]
        return {"image": names} | scores


class _Requests(ImageDataModule):
    """Samples to be drawn, as images to be read: blank, with the label to draw."""

    def __init__(self, number: int, classes: list[int] | None, batch_size: int) -> None:
        if batch_size < 1:
            raise RunError(f"sample: batch_size must be at least 1, got {batch_size}")
        super().__init__(batch_size)
        labels = None
        if classes:
            labels = torch.tensor(classes).repeat(-(-number // len(classes)))[:number]
        blank = torch.zeros(number, 1, 1, 1, dtype=torch.uint8)
        self.sources = {"test": TensorSource(blank, labels)}


def _like(data: ImageDataModule, path: str, shape: tuple[int, int, int]) -> Images:
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


def _check_suffix(output: str, *suffixes: str) -> None:
    path = Path(output)
    if path.suffix not in suffixes:
        raise RunError(f"output must be a name with {' or '.join(suffixes)}, got {output}")
    if path.is_dir():
        raise RunError(f"output must be a file, and {output} is a folder")


def _write_npz(
    output: str, arrays: Arrays, images: np.ndarray | None = None, columns: int | None = None
) -> None:
    """Write arrays, and beside them a picture of images if there are any."""
    if images is not None and images.shape[1] not in (1, 3):
        print(f"no picture is written, as the images have {images.shape[1]} channels")
    elif images is not None:
        picture = Path(output).with_suffix(".png")
        with replacing(picture) as draft:
            save_grid(draft, torch.from_numpy(images), columns=columns, scale=2)
        print(f"wrote {picture}")
    with replacing(output) as draft:
        np.savez(draft, **arrays)  # type: ignore[arg-type]
    _finish(output)


def _finish(output: str) -> None:
    remove_parts(output)
    print(f"wrote {output}")
