"""What training and the tasks of trained models compute, as programs that run on any device."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gpu_programs import FIRST_BATCH, MODELS, SHAPE, add, build_model, pixels
from torch import Tensor

from mixer_bijectors import images
from mixer_bijectors.train import DensityEstimation
from mixer_bijectors.train.callbacks.guard import Guard
from mixer_bijectors.train.callbacks.sample_pictures import Pictures, _reconstructions
from mixer_bijectors.train.data.batches import Batch
from mixer_bijectors.train.tasks.anomaly import anomaly_scores, auroc
from mixer_bijectors.train.tasks.embed import embeddings
from mixer_bijectors.train.tasks.prediction import BatchWriter, Compute, Prediction
from mixer_bijectors.train.tasks.reconstruct import reconstructions
from mixer_bijectors.train.tasks.sample import samples
from mixer_bijectors.train.tasks.score import scores

PREDICTION = "mixer_bijectors.train.tasks.prediction"


def module(name: str, **options: Any) -> Any:
    model = DensityEstimation(build_model(MODELS[name])[0], **options)
    model.log = lambda *args, **kwargs: None
    return model


def batch(count: int = 4) -> Batch:
    seeds = [3, 1, 4, 1][:count]
    return Batch(
        pixels(count), torch.arange(count) % 3, list(range(count)), seeds, [False] * count
    )


def validated(model: Any, batch: Batch) -> Any:
    model.validation_step(batch, 0)
    model.test_step(batch._replace(padding=[False, False, True, True]), 0)
    return [metric.compute() for split in model.metrics.values() for metric in split.values()]


LEVELS = "train.checks.warn_if_scaled"  # of the first batch
TRAINED = {
    "MixerFlow": {},
    "MixerFlow of classes": {"label_dropout": 0.5},
    "TarFlow of classes": {"noise": 0.1, "label_dropout": 0.5},
    "HybridClassifier": {},
}
for name, options in TRAINED.items():
    build = partial(
        lambda name, options: (module(name, **options).train(), batch()), name, options
    )
    first = (LEVELS,) if name.startswith("TarFlow") else (LEVELS, FIRST_BATCH)
    add(
        f"training step, {name}",
        build,
        lambda model, batch: model.training_step(batch, 0),
        *first,
    )
    add(
        f"training step without seeds, {name}",
        build,
        lambda model, batch: model.training_step(batch[:2], 0),
        *first,
    )
    add(
        f"validation, {name}",
        partial(lambda name, options: (module(name, **options).eval(), batch()), name, options),
        validated,
        "train.metrics.compute",
        LEVELS,
    )


def scored(bits: Tensor, size: Tensor) -> Any:
    scores = anomaly_scores(bits, size, 0.5)
    return scores, auroc(scores["ratio"], scores["typicality"])


add(
    "anomaly scores",
    lambda: (torch.rand(5), torch.rand(5)),
    scored,
    "train.tasks.anomaly.auroc",
)


def guarded(parameter: Tensor) -> Tensor:
    guard = Guard()
    trainer: Any = SimpleNamespace(
        accumulate_grad_batches=1,
        precision_plugin=None,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda good, all: good),
    )
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(grad=parameter)])
    guard.on_before_backward(trainer, model, parameter.sum())
    guard.on_before_optimizer_step(trainer, model, None)
    return parameter


add(
    "Guard", lambda: (torch.rand(3),), guarded, "train.callbacks.guard.on_before_optimizer_step"
)


def pictured(model: Any, x: Tensor) -> Tensor:
    callback = Pictures(num_samples=4)
    type(model).device = property(lambda self: x.device)
    samples = callback._sample(model)
    _reconstructions(model, x)
    return images.make_grid(samples)


class OnDevice(DensityEstimation):
    """Which Lightning tells its device."""


add(
    "Pictures",
    lambda: (OnDevice(build_model(MODELS["MixerFlow"])[0]), torch.rand(2, *SHAPE)),
    pictured,
    "train.callbacks.sample_pictures._reconstructions",
)


TASKS: dict[str, Compute] = {
    "sample": partial(samples, options={"temperature": 1.0}),
    "embed": embeddings,
    "score": partial(scores, compressed=False, labelled=True),
    "score of anomalies": partial(scores, compressed=True, labelled=False),
    "reconstruct": reconstructions,
}


def computed(task: str, model: Any, batch: Batch) -> Any:
    """What a task writes for one batch."""
    output: Any = SimpleNamespace(model=model, seed=0)
    data: Any = None
    writer = BatchWriter(Path(), len(batch.images))
    prediction = Prediction(output, TASKS[task], data, "test", None, writer, 0)
    results = prediction.predict_step(batch, 0)
    written: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(np, "savez", lambda _, **arrays: written.append(arrays))
        patched.setattr(f"{PREDICTION}.atomic_write", nullcontext)
        writer.write_on_batch_end(None, prediction, results, None, batch, 0, 0)  # type: ignore[arg-type]
    return written[0]


for task, (name, places) in {
    "sample": ("TarFlow of classes", ()),
    "embed": ("MixerFlow of classes", ()),
    "score": ("MixerFlow of classes", ()),
    "score of anomalies": ("MixerFlow", ("train.tasks.anomaly.complexity",)),
    "reconstruct": ("MixerFlow of classes", ()),
}.items():
    add(
        f"task {task}",
        partial(lambda name: (module(name).eval(), batch()), name),
        partial(computed, task),
        "train.tasks.prediction.write_on_batch_end",
        *places,
    )
