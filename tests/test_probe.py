"""The task `probe`, and the linear probe of frozen features."""

import re

import numpy as np
import pytest
import torch
from commands import task
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny_runs import IMAGES, Constant, Cut, make_flow, make_trainer

from mixer_bijectors.train import DensityEstimation, RunError
from mixer_bijectors.train.tasks.probe import linear_probe

RNG = np.random.default_rng(0)


def test_a_probe(run, tmp_path, capsys):
    task("probe", run, tmp_path / "probe.npz")
    told = float(re.search(r"linear probe (\S+)", capsys.readouterr().out)[1])
    assert told > 0.9
    assert float(np.load(tmp_path / "probe.npz")["accuracy"]) == pytest.approx(told, abs=1e-4)


def test_a_probe_needs_a_label_for_each_image(run, tmp_path):
    module = DensityEstimation(make_flow())
    data = Constant((255 * IMAGES).byte(), torch.tensor([0, 0, 0, 1, 1, 1, -1, -1]))
    options = {"ckpt_path": str(run), "output": str(tmp_path / "p.npz")}
    with pytest.raises(RunError, match="2 of the train images have none"):
        make_trainer().probe(module, data, **options)


def test_a_probe_that_was_cut_off_goes_on(run, tmp_path, monkeypatch):
    def cut(*_):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("mixer_bijectors.train.tasks.probe.linear_probe", cut)
        with pytest.raises(Cut):
            task("probe", run, tmp_path / "p.npz")
    parts = tmp_path / "p.npz.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["test", "train"]
    with monkeypatch.context() as patch:
        patch.setattr("mixer_bijectors.train.tasks.probe.embeddings", None)
        patch.setattr("mixer_bijectors.train.tasks.prediction.as_text", text_of_embeddings)
        task("probe", run, tmp_path / "p.npz")
    assert not parts.exists()


def text_of_embeddings(_):
    """What tells the computation of a probe from others."""
    return "<function embeddings>"


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
        ((X[:, 0], Y), (X, Y), "Expected 2D array, got 1D array"),
        ((X, Y), (X, Y[:3]), "inconsistent numbers of samples"),
        ((X, Y), (X[:0], Y[:0]), "0 sample"),
        ((X, Y), (X[:, :1], Y), "X has 1 features, but StandardScaler is expecting 2"),
        ((X, Y), (X + np.nan, Y), "Input X contains NaN"),
        ((X, Y * 0), (X, Y), "two training images each, got 4 of class 0"),
        ((X[:3], Y[:3]), (X, Y), "two training images each, got 2 of class 0, 1 of class 1"),
    ],
)
def test_features_and_labels_that_do_not_fit_are_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(train, test)
