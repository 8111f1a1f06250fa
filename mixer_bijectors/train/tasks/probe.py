"""The task `probe`: the accuracy of a linear classifier of frozen embeddings."""

from collections.abc import Sequence

import lightning as L
import numpy as np
from numpy.typing import NDArray

from ..data.image_data_module import ImageDataModule
from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from .embed import embeddings
from .output import Output
from .prediction import predict_images

__all__ = ["linear_probe", "probe"]

_Labelled = tuple[NDArray[np.floating], NDArray[np.integer]]


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


def linear_probe(
    train: _Labelled,
    test: _Labelled,
    *,
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> float:
    """Accuracy on test images of logistic regression on standardised features.

    Its inverse regularisation is what does best on a fifth of the training images that is held
    out, after which it is fitted to all of them. Test images choose nothing.

    Args:
        train: features (images, dimensions) and labels (images,), arrays or tensors on the CPU.
        test: the same of other images.
        strengths: the values of scikit-learn's `C` to choose from; of equals, the first.

    Returns:
        The share of test images that are classified rightly.

    Raises:
        ValueError: from scikit-learn, features that are no matrix, not finite, or not as many
            as labels; training and test features of different sizes. Here, a single class, or
            one with a single training image.

    References:
        Alain and Bengio, Understanding intermediate layers using linear classifier probes,
        2016 (https://arxiv.org/abs/1610.01644)

    Example:
        >>> x = np.random.default_rng(0).normal(size=(400, 3))
        >>> y = (x[:, 1] > 0).astype(int)
        >>> linear_probe((x[:200], y[:200]), (x[200:], y[200:])) > 0.9
        True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_test, y_test) = (tuple(map(np.asarray, data)) for data in (train, test))
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise ValueError(
            "linear_probe: needs two classes at least, with two training images each, got "
            + ", ".join(f"{n} of class {k}" for k, n in zip(classes, counts))
        )
    # At least one image of each class on either side.
    size = max(len(classes), round(0.2 * len(y)))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": strengths},
        cv=StratifiedShuffleSplit(1, test_size=size, random_state=0),
        error_score="raise",
    )
    return float(search.fit(x, y).score(x_test, y_test))
