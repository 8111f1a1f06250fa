"""Images that are read one by one, and put into batches."""

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_bijectors.train import DataError, ImageError
from mixer_bijectors.train.data.batches import Batch, RequestedImages, TensorSource
from mixer_bijectors.train.data.sampling import ImageRequest
from mixer_bijectors.train.density_estimation import as_batch


def test_training_varies_and_evaluation_does_not(source):
    plain = RequestedImages(source, flip=True)
    assert torch.equal(plain[ImageRequest(3, (5,))][2], source.images[3])
    flips = [plain[ImageRequest(3, (s,), train=True)][2][0, 0, 0] for s in range(200)]
    assert flips == [plain[ImageRequest(3, (s,), train=True)][2][0, 0, 0] for s in range(200)]
    assert 0.4 < sum(int(f == source.images[3, 0, 0, 5]) for f in flips) / 200 < 0.6


def test_nothing_can_be_read():
    class Nothing(TensorSource):
        def read(self, index, rng):
            raise ImageError("no")

    images = RequestedImages(Nothing(torch.zeros(3, 1, 2, 2)), skip_bad=True)
    error = images[ImageRequest(1, train=True)]
    assert isinstance(error, DataError) and "none of 3 images can be read" in str(error)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            np.zeros((1, 2, 2), np.uint8),
            "returned ndarray; it must return a uint8 tensor of sh",
        ),
        ((np.zeros((1, 2, 2), np.uint8), 0), "returned ndarray and int; it must return"),
        ((Image.new("L", (2, 2)), 0), "returned Image and int; it must return"),
        (torch.zeros(1, 2, 2), r"returned pixels of shape \(1, 2, 2\); it must return"),
        (
            (torch.zeros(2, 2), 0),
            r"shape \(2, 2\) and int; .* tensor of shape \(1, 2, 2\), and",
        ),
        ((torch.zeros(1, 2, 2), "cat"), r"and str; .* a label, a whole number or None"),
        ((torch.zeros(1, 2, 2), 0.5), "and float; it must return"),
        (None, "returned NoneType; it must return"),
        (
            OSError(2, "gone", "a.png"),
            "raised FileNotFoundError at image 1: .*a.png.*ImageError",
        ),
    ],
)
def test_sources_that_read_something_else(read, message):
    class Odd(TensorSource):
        def read(self, index, rng):
            if isinstance(read, Exception):
                raise read
            return read

    error = RequestedImages(Odd(torch.zeros(3, 1, 2, 2)), skip_bad=True)[ImageRequest(1)]
    assert isinstance(error, DataError) and "\n" not in str(error)
    with pytest.raises(DataError, match=rf"^Odd\.read .*{message}"):
        raise error


@pytest.mark.parametrize("label", [2, np.int64(2), torch.tensor(2), True, None])
def test_labels_of_sources(label):
    class Labelled(TensorSource):
        def read(self, index, rng):
            return self.images[index], label

    images = RequestedImages(Labelled(torch.zeros(3, 1, 2, 2)))
    assert images[ImageRequest(1)][3] == label
    labels = images.collate([images[ImageRequest(1)]]).labels
    assert labels is None if label is None else labels.tolist() == [int(label)]


def test_labels_the_model_has_no_class_for_are_told(source):
    images = RequestedImages(source, known_labels=range(-1, 2))
    assert not isinstance(images[ImageRequest(1)], DataError)
    batch = images.collate([images[ImageRequest(1)], images[ImageRequest(2)]])
    told = r"image 2 \(2\) has the label 2, but those of the model are from -1 to 1"
    with pytest.raises(DataError, match=told):
        as_batch(batch)

    classifier = RequestedImages(
        TensorSource(torch.zeros(1, 1, 2, 2), torch.tensor([-1])), known_labels=range(2)
    )
    with pytest.raises(DataError, match=r"image 0 \(0\) has no label, but those of the model"):
        as_batch(classifier.collate([classifier[ImageRequest(0)]]))


def test_batches_of_other_data_modules_are_taken():
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2])
    assert as_batch(x).kept == [0, 1, 2]
    assert as_batch([x, y]).labels is y
    batch = Batch(x, y, [5, 6, 7], [1, 2, 3], [False, True, False])
    assert as_batch(batch) is batch and batch.kept == [0, 2]


def test_sources_are_read_with_randomness_in_training_alone(source):
    seen = []

    class Spy(TensorSource):
        def read(self, index, rng):
            seen.append(type(rng))
            return super().read(index, rng)

    images = RequestedImages(Spy(source.images))
    images[ImageRequest(0, train=True)], images[ImageRequest(0)]
    assert seen == [Random, type(None)]
