"""The task `sample`: images drawn from a model."""

from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ...images import quantize
from ...layers.transformer_autoregressive import Guidance
from ...models.denoising import denoise
from ...models.former_options import FORMER_OPTIONS
from ..data.batches import Batch, TensorSource
from ..data.image_data_module import ImageDataModule
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from ..io.names import some
from .output import Output
from .pictures import class_columns
from .prediction import predict_images

__all__ = ["check_options", "draw", "sample", "samples"]

_NAMED = 20  # classes in a line


def sample(
    trainer: L.Trainer,
    model: DensityEstimation,
    datamodule: L.LightningDataModule | None = None,
    ckpt_path: str | None = None,
    output: str | None = None,
    num_samples: int = 64,
    batch_size: int = 64,
    temperature: float = 1.0,
    classes: int | str | list[int | str] | None = None,
    guidance: Guidance | float = 0.0,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Draw images: a grid as png, and an npz file of images, log-densities and labels.

    Args:
        model: the model, from the config.
        datamodule: not looked at.
        ckpt_path: a checkpoint of `fit`.
        output: the npz file, with the grid beside it; by default `results/samples.npz` in the
            folder of the run.
        num_samples: number of images.
        batch_size: images drawn at once.
        temperature: scale of the base's standard deviation.
        classes: names or labels of classes to draw in turn; by default all of a
            class-conditional model. A number that is the name of a class means that one.
        guidance: push samples of attention away from a weaker prediction: the weight, or all
            that `mixer_bijectors.Guidance` takes.
        seed: what the images depend on, with the batch size; by default they are new ones
            each time.
        options: other options of sampling that layers of the model take, such as `method`.
        overwrite: replace files that are there.
    """
    if num_samples < 1:
        raise RunError(f"sample: num_samples must be at least 1, got {num_samples}")
    if seed is not None and seed < 0:
        raise RunError(f"sample: seed must not be negative, got {seed}")
    if twice := {"temperature", "guidance", "num_samples"} & set(options or {}):
        raise RunError(f"sample: {min(twice)} does not go into options; pass --{min(twice)}")
    given = {"temperature": temperature} | (options or {})
    if guidance:
        given["guidance"] = guidance
    check_options(model.density, given)
    with Output(
        *(trainer, model, ckpt_path, output, "samples.npz"), pictures=True, overwrite=overwrite
    ) as out:
        labels = _labels(model, classes, num_samples)
        drawn = predict_images(
            out,
            partial(samples, options=given),
            _SampleLabels(num_samples, labels, batch_size),
            seed="new" if seed is None else seed,
        )
        if not drawn:
            return
        del drawn["index"]
        count = f"{len(drawn['images'])} images"
        out.write_npz(drawn, f"{count}, drawn with --seed {out.seed}")
        columns = class_columns(num_samples, len(labels or ()))
        names = dict(enumerate(model.class_names or ()))
        shown = [f"{k} {names.get(k, '')}".strip() for k in (labels or [])[:num_samples]]
        more = f" and {len(shown) - _NAMED} others" if len(shown) > _NAMED else ""
        places = "columns are" if columns else "row by row, images are of"
        note = f"{places} the classes {', '.join(shown[:_NAMED])}{more}, in turn"
        images = torch.from_numpy(drawn["images"])
        out.write_picture(images, columns, note if labels else count)


def samples(
    model: DensityEstimation, batch: Batch, *, options: dict[str, Any]
) -> dict[str, Tensor]:
    """8-bit images of a model, and their log-densities."""
    x, log_prob = draw(model, len(batch.images), batch.labels, options)
    # A pixel that is not a number would become a black one.
    fine = x.flatten(1).isfinite().all(1)
    return {"images": quantize(x), "log_prob": log_prob.where(fine, torch.nan)}


def draw(
    model: DensityEstimation, number: int, labels: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Images of a model, denoised if it is one of noisy images, and log-densities."""
    x, log_prob = model.density.sample(number, labels, **options)
    return denoise(model.density, x, model.noise, labels) if model.noise else x, log_prob


def check_options(density: Any, options: dict[str, Any]) -> None:
    """Raise a RunError if a model does not take some of the options of sampling."""
    known = ("temperature", *density.sampling_options)
    former = FORMER_OPTIONS if "guidance" in known else ()
    if unknown := [name for name in options if name not in (*known, *former)]:
        raise RunError(
            f"the model has no {unknown[0]}; leave it out, its options of sampling are "
            f"{', '.join(known)}"
        )
    density.check_temperature(options.get("temperature", 1.0))


def _labels(
    model: DensityEstimation, classes: int | str | list[int | str] | None, num_samples: int
) -> list[int] | None:
    """The labels to draw in turn."""
    known = model.density.label_range
    if known is None:
        if classes is not None:
            raise RunError("the model is not class-conditional; leave out classes")
        return None
    count, names = model.density.num_classes, list(model.class_names or ())
    if classes is None:
        return list(range(count))
    chosen = classes if isinstance(classes, list) else [classes]
    if not 0 < len(chosen) <= num_samples:
        raise RunError(
            f"sample: classes must name from 1 to num_samples={num_samples} classes, which "
            f"are drawn in turn, got {len(chosen)}"
        )
    labels = []
    for name in chosen:
        # A number may be a name: folders 1, 2 and 10 are classes with the labels 0, 2 and 1.
        label = names.index(str(name)) if str(name) in names else name
        if isinstance(label, str) or label not in known:
            named = f", named {some(names)}" if names else ""
            null = ", and -1, the null class" if -1 in known else ""
            raise RunError(f"the model has no class {label}, but {count} from 0{named}{null}")
        labels.append(label)
    return labels


class _SampleLabels(ImageDataModule):
    """The labels of samples to draw, which processes share out as they do images."""

    def __init__(self, number: int, classes: list[int] | None, batch_size: int) -> None:
        if batch_size < 1:
            raise RunError(f"sample: batch_size must be at least 1, got {batch_size}")
        super().__init__(batch_size)
        labels = None
        if classes:
            labels = torch.tensor(classes).repeat(-(-number // len(classes)))[:number]
        blank = torch.zeros(number, 1, 1, 1, dtype=torch.uint8)
        self.sources = {"test": TensorSource(blank, labels)}
