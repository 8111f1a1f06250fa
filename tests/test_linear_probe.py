"""The linear probe of frozen features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mixer_bijectors.train.tasks.linear_probe import linear_probe

RNG = np.random.default_rng(0)


def classes(images, dimensions=6, spread=1.0):
    """Three normal distributions, and the labels of their points."""
    labels = np.arange(images) % 3
    middles = 2 * np.eye(3, dimensions)
    return middles[labels] + spread * RNG.normal(size=(images, dimensions)), labels


def test_is_the_accuracy_of_logistic_regression():
    train, test = classes(120), classes(300)
    scaler = StandardScaler().fit(train[0])
    classifier = LogisticRegression(C=0.1, max_iter=1000).fit(
        scaler.transform(train[0]), train[1]
    )
    want = classifier.score(scaler.transform(test[0]), test[1])
    assert linear_probe(train, test, strengths=[0.1]) == want
    assert 0.6 < want < 1


def test_scale_and_place_of_features_do_not_matter():
    train, test = classes(120), classes(300)
    want = linear_probe(train, test)
    scale, shift = np.logspace(-2, 2, 6), np.linspace(-9, 9, 6)
    moved = [(features * scale + shift, labels) for features, labels in (train, test)]
    assert linear_probe(*moved) == pytest.approx(want, abs=0.02)


def test_the_strength_is_chosen_without_test_images():
    """One classifier, whatever is asked for: each image is of one class to it."""
    train, (features, labels) = classes(60, spread=3.0), classes(90, spread=3.0)
    asked = [linear_probe(train, (features, (labels + shift) % 3)) for shift in range(3)]
    assert sum(asked) == pytest.approx(1)
    assert asked[0] == max(asked)


def test_regularises_where_features_are_many_and_noisy():
    labels = np.arange(400) % 2
    features = RNG.normal(size=(400, 200))
    features[:, 0] += 2 * (labels - 0.5)
    train, test = (features[:100], labels[:100]), (features[100:], labels[100:])
    assert linear_probe(train, test) >= linear_probe(train, test, strengths=[1e3])


def test_is_the_same_every_time_and_leaves_the_seed_alone():
    train, test = classes(60, spread=3.0), classes(60, spread=3.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert linear_probe(train, test) == linear_probe(train, test)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_tensors_constant_features_and_rare_classes():
    features, labels = classes(40)
    features[:, 4] = 1.0
    labels[labels == 2] = 1
    labels[:2] = 2
    accuracy = linear_probe(
        (torch.tensor(features), torch.tensor(labels)),
        (torch.tensor(features), torch.tensor(labels)),
    )
    assert 0.5 < accuracy <= 1
    assert isinstance(accuracy, float)


X, Y = np.zeros((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            (X[:, 0], Y),
            (X, Y),
            "expected training features of shape (images, dimensions) and labels of shape "
            "(images,), got (4,) and (4,)",
        ),
        ((X, Y), (X, Y[:3]), "expected test features of shape (images, dimensions) and labels"),
        ((X, Y), (X[:0], Y[:0]), "got (0, 2) and (0,)"),
        ((X, Y), (X[:, :1], Y), "training features have 2 dimensions, test features 1"),
        ((X + np.nan, Y), (X, Y), "training features are not finite"),
        ((X, Y * 0), (X, Y), "two training images each, got 4 of class 0"),
        ((X[:3], Y[:3]), (X, Y), "two training images each, got 2 of class 0, 1 of class 1"),
    ],
)
def test_one_sentence_says_what_is_wrong(train, test, message):
    with pytest.raises(ValueError, match="linear_probe") as caught:
        linear_probe(train, test)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
