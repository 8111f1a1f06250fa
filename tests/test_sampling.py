"""The order of images depends on a seed and positions alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_bijectors.train import DataError
from mixer_bijectors.train.data.batches import RequestedImages
from mixer_bijectors.train.data.sampling import ResumableLoader, ShardedSampler, derive_seed

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
