"""Batches that depend on a seed and positions alone."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer_bijectors.train import DataError, ImageDataModule, ImageError, RunError
from mixer_bijectors.train.data.batches import Batch, RequestedImages, TensorSource
from mixer_bijectors.train.data.sampling import (
    ImageRequest,
    ResumableLoader,
    ShardedSampler,
    derive_seed,
)
from mixer_bijectors.train.density_estimation import as_batch

SIZES = st.integers(1, 60)
BATCHES = st.integers(1, 9)
PROCESSES = st.integers(1, 5)


def batches(sampler):
    """The draws of each batch, as a DataLoader would cut them."""
    draws = list(sampler)
    size = sampler.batch_size
    return [draws[i : i + size] for i in range(0, len(draws), size)]


@settings(deadline=None)
@given(size=SIZES, batch_size=BATCHES, world_size=PROCESSES, data=st.data())
def test_evaluation_deals_out_the_batches_of_one_process(size, batch_size, world_size, data):
    numbers = -(-size // batch_size)
    skip = data.draw(st.sets(st.integers(0, numbers - 1)))
    one = batches(ShardedSampler(size, batch_size, train=False))
    ranks = [
        batches(
            ShardedSampler(
                size, batch_size, train=False, rank=rank, world_size=world_size, skip=skip
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1, "all keep in step"
    seen = [b for rank in ranks for b in rank if not b[0].padding]
    assert sorted(seen) == [b for number, b in enumerate(one) if number not in skip]
    padding = [b for rank in ranks for b in rank if b[0].padding]
    assert all(len(b) == 1 for b in padding) and len(padding) < world_size


@settings(deadline=None)
@given(batch_size=BATCHES, world_size=PROCESSES, count=st.integers(1, 5), epoch=BATCHES)
def test_training_cuts_the_batches_of_one_process(batch_size, world_size, count, epoch):
    size = count * batch_size * world_size + min(1, batch_size * world_size - 1)
    samplers = [
        ShardedSampler(size, batch_size, train=True, seed=3, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    one = ShardedSampler(size, batch_size * world_size, train=True, seed=3)
    for sampler in (one, *samplers):
        sampler.set_epoch(epoch)
    joint = [[d for part in parts for d in part] for parts in zip(*map(batches, samplers))]
    assert joint == batches(one)
    assert (
        len({draw.position for batch in joint for draw in batch})
        == len(samplers[0]) * world_size
    )


def test_epochs_and_seeds_differ_in_order_and_randomness():
    sampler = ShardedSampler(20, 4, train=True)
    first = list(sampler)
    sampler.set_epoch(1)
    assert [d.position for d in first] != [d.position for d in sampler]
    assert {d.seed() for d in first}.isdisjoint(d.seed() for d in sampler)
    other = list(ShardedSampler(20, 4, train=True, seed=1))
    assert [d.position for d in first] != [d.position for d in other]


def test_evaluation_does_not_depend_on_the_seed():
    samplers = [ShardedSampler(20, 4, train=False, seed=seed) for seed in (0, 1)]
    assert list(samplers[0]) == list(samplers[1])


def test_too_few_images_for_a_batch():
    with pytest.raises(DataError, match="there are 7 images, which do not make one batch of 8"):
        ShardedSampler(7, 4, train=True, world_size=2)


def test_a_seed_depends_on_every_number():
    seeds = {derive_seed(*numbers) for numbers in [(0,), (1,), (0, 1), (1, 0), (2**62, 5)]}
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.fixture
def source():
    images = torch.arange(24, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 6)
    ramp = torch.arange(24, dtype=torch.uint8).view(1, 1, 4, 6)
    return TensorSource((images + 10 * ramp).contiguous(), torch.arange(24) % 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_from_its_state(source, num_workers):
    def make():
        images = RequestedImages(source, flip=True)
        return ResumableLoader(
            images,
            batch_size=5,
            sampler=ShardedSampler(24, 5, train=True, seed=2),
            collate_fn=images.collate,
            num_workers=num_workers,
        )

    whole = make()
    epochs = []
    for epoch in range(3):
        whole.sampler.set_epoch(epoch)
        epochs.append(list(whole))
    partial = make()
    partial.sampler.set_epoch(1)
    iterator = iter(partial)
    for _ in range(2):
        next(iterator)
    state = partial.state_dict()
    resumed = make()
    resumed.sampler.seed = 99  # as of another run; the state knows better
    resumed.load_state_dict(state)
    assert len(resumed) == 4, "the length is that of the epoch"
    for got, want in zip(list(resumed), epochs[1][2:], strict=True):
        assert torch.equal(got.images, want.images) and got[2:] == want[2:]
    resumed.sampler.set_epoch(2)
    for got, want in zip(list(resumed), epochs[2], strict=True):
        assert torch.equal(got.images, want.images) and got.indices == want.indices


def test_training_varies_and_evaluation_does_not(source):
    plain = RequestedImages(source, flip=True)
    assert torch.equal(plain[ImageRequest(3, (5,))][2], source.images[3])
    flips = [plain[ImageRequest(3, (s,), train=True)][2][0, 0, 0] for s in range(200)]
    assert flips == [plain[ImageRequest(3, (s,), train=True)][2][0, 0, 0] for s in range(200)]
    assert 0.4 < sum(int(f == source.images[3, 0, 0, 5]) for f in flips) / 200 < 0.6


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


def test_a_data_module_without_sources():
    class Empty(ImageDataModule):
        pass

    with pytest.raises(DataError, match="Empty has no sources; its setup must set self"):
        Empty().test_dataloader()


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


def test_batches_of_other_data_modules_are_taken():
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2])
    assert as_batch(x).kept == [0, 1, 2]
    assert as_batch([x, y]).labels is y
    batch = Batch(x, y, [5, 6, 7], [1, 2, 3], [False, True, False])
    assert as_batch(batch) is batch and batch.kept == [0, 2]


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


def test_sources_are_read_with_randomness_in_training_alone(source):
    seen = []

    class Spy(TensorSource):
        def read(self, index, rng):
            seen.append(type(rng))
            return super().read(index, rng)

    images = RequestedImages(Spy(source.images))
    images[ImageRequest(0, train=True)], images[ImageRequest(0)]
    assert seen == [Random, type(None)]


def test_a_run_goes_on_with_another_number_of_processes(source):
    def read(loader, count):
        iterator = iter(loader)
        return [i for _ in range(count) for i in next(iterator).indices]

    def make(batch_size, world_size, rank=0):
        images = RequestedImages(source)
        sampler = ShardedSampler(24, batch_size, train=True, rank=rank, world_size=world_size)
        return ResumableLoader(
            images, batch_size=batch_size, sampler=sampler, collate_fn=images.collate
        )

    one = make(4, 1)
    seen = read(one, 2)
    left = []
    for rank in range(2):
        resumed = make(2, 2, rank)
        resumed.load_state_dict(one.state_dict())
        left += read(resumed, 4)
    assert sorted(seen + left) == list(range(24))
