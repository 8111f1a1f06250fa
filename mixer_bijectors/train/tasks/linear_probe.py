"""Accuracy of a linear classifier of frozen features."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["linear_probe"]

_Labelled = tuple[NDArray[np.floating], NDArray[np.integer]]


def linear_probe(
    train: _Labelled,
    test: _Labelled,
    *,
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    held_out: float = 0.2,
    max_iter: int = 1000,
    seed: int = 0,
) -> float:
    """Accuracy on test images of logistic regression on standardised features.

    Its inverse regularisation is what does best on a part of the training images that is held
    out, after which it is fitted to all of them. Test images choose nothing.

    Args:
        train: features (images, dimensions) and labels (images,), arrays or tensors on the CPU.
        test: the same of other images.
        strengths: the values of scikit-learn's `C` to choose from; of equals, the first.
        held_out: share of the training images to choose by, with as much of every class.
        max_iter: steps of the optimiser in each fit.
        seed: of the choice of what is held out.

    Returns:
        The share of test images that are classified rightly.

    Raises:
        ValueError: features that are no matrix, not finite, or not as many as labels; training
            and test features of different sizes; a single class, or one with a single training
            image.

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
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _check("training", train)
    x_test, y_test = _check("test", test)
    if x_test.shape[1] != x.shape[1]:
        raise ValueError(
            f"linear_probe: training features have {x.shape[1]} dimensions, test features "
            f"{x_test.shape[1]}"
        )
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise ValueError(
            "linear_probe: needs two classes at least, with two training images each, got "
            + ", ".join(f"{n} of class {k}" for k, n in zip(classes, counts))
        )

    def fit(strength: float, x: NDArray[np.floating], y: NDArray[np.integer]) -> Pipeline:
        classifier = LogisticRegression(C=strength, max_iter=max_iter)
        return make_pipeline(StandardScaler(), classifier).fit(x, y)

    # At least one image of each class on either side.
    size = max(len(classes), round(held_out * len(y)))
    x_fit, x_held, y_fit, y_held = train_test_split(
        x, y, test_size=size, random_state=seed, stratify=y
    )
    scores = {s: fit(s, x_fit, y_fit).score(x_held, y_held) for s in strengths}
    best = max(scores, key=lambda strength: scores[strength])
    return float(fit(best, x, y).score(x_test, y_test))


def _check(name: str, data: _Labelled) -> _Labelled:
    features, labels = np.asarray(data[0]), np.asarray(data[1])
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"linear_probe: expected {name} features of shape (images, dimensions) and labels "
            f"of shape (images,), got {features.shape} and {labels.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"linear_probe: {name} features are not finite")
    return features, labels
