"""The base class of data modules of images."""

import pytest
import torch

from mixer_bijectors.train import DataError, ImageDataModule, ImageError, RunError
from mixer_bijectors.train.data.batches import TensorSource
from mixer_bijectors.train.data.sampling import ImageRequest
from mixer_bijectors.train.density_estimation import as_batch


def test_pixels_are_permuted_alike_in_all_images_and_splits(source):
    class Data(ImageDataModule):
        def setup(self, stage):
            self.sources = dict.fromkeys(("train", "val", "test"), source)

    def images(split, seed):
        batch = next(iter(Data(24, permute_seed=seed).loader(split)))
        return batch.images[torch.tensor(batch.indices).argsort()]

    permuted = images("test", 4)
    assert not torch.equal(permuted, source.images)
    order = [
        source.images[0].flatten().tolist().index(v) for v in permuted[0].flatten().tolist()
    ]
    assert sorted(order) == list(range(24)), "a permutation"
    assert torch.equal(permuted.flatten(1), source.images.flatten(1)[:, order])
    assert torch.equal(permuted, images("val", 4))
    assert not torch.equal(permuted, images("test", 5))
    assert torch.equal(images("test", None), source.images)


class Broken(TensorSource):
    """Every third image cannot be read."""

    def read(self, index, rng):
        if index % 3 == 1:
            raise ImageError(f"image {index} (file-{index}): truncated")
        return super().read(index, rng)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_told_or_skipped_and_counted(source, num_workers):
    class Data(ImageDataModule):
        def setup(self, stage):
            broken = Broken(source.images, source.labels)
            self.sources = dict.fromkeys(("train", "val", "test"), broken)

    loader = Data(6, num_workers).test_dataloader()
    with pytest.raises(RunError, match=r"image 1 \(file-1\): truncated; on_bad_image: skip"):
        as_batch(next(iter(loader)))

    data = Data(6, num_workers, on_bad_image="skip")
    tested = [as_batch(batch) for batch in data.test_dataloader()]
    kept = [batch.indices[position] for batch in tested for position in batch.kept]
    assert kept == [index for index in range(24) if index % 3 != 1]
    train = data.train_dataloader()
    assert not any(index % 3 == 1 for batch in train for index in as_batch(batch).indices)
    assert data.datasets["test"].bad.sum() == 8


def test_a_data_module_without_sources():
    class Empty(ImageDataModule):
        pass

    with pytest.raises(DataError, match="Empty has no sources; its setup must set self"):
        Empty().test_dataloader()


def test_labels_are_those_of_the_model_by_the_names_of_classes(source):
    class Named(ImageDataModule):
        labels = range(-1, 3)
        known_classes = ["c", "a", "b"]
        class_names = ["a", "b"]

        def setup(self, stage):
            self.sources = {"test": source}

    dataset = Named(2)._dataset("test")
    assert [dataset[ImageRequest(index)][3] for index in (0, 1)] == [1, 2]
    error = dataset[ImageRequest(2)]
    assert isinstance(error, DataError)
    assert str(error) == "image 2 (2) has the label 2, but class_names has 2 names"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_data_modules_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)
