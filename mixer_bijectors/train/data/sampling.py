"""The order in which images are read, and the seed of each, from a seed and positions alone.

So a run that was cut off goes on with the very batch that it would have had, and any number of
processes see the same images with the same noise.
"""

import os
import random
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler

from ..io.errors import DataError

__all__ = [
    "ImageRequest",
    "ResumableLoader",
    "ShardedSampler",
    "derive_seed",
    "run_seed",
    "seed_generators",
]


def derive_seed(*numbers: int) -> int:
    """A seed of 63 bits that depends on all of the numbers, none of them negative.

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)
    """
    # With their number, since zeros at the end make no difference to numpy.
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def seed_generators(*numbers: int) -> None:
    """Seed the global generators of torch, numpy and Python, which models may draw from."""
    seed = derive_seed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - normflows' residual flows draw from it
    random.seed(seed)


def run_seed() -> int:
    """The seed of Lightning's `seed_everything`, called in this process or its parent."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


class ImageRequest(NamedTuple):
    """An image that a sampler asks for.

    Attributes:
        position: of the image in its dataset.
        key: numbers that its seed depends on, besides the position.
        train: whether it is for training, so that it may vary.
        padding: whether it fills a batch, and counts for nothing.
    """

    position: int
    key: tuple[int, ...] = ()
    train: bool = False
    padding: bool = False

    def seed(self) -> int:
        """The seed of all that is random in the image."""
        return derive_seed(*self.key, self.position)


class ShardedSampler(DistributedSampler[ImageRequest]):
    """The images that one of several processes reads; their number makes no difference.

    In training, processes cut each batch of `batch_size * world_size` images into equal parts;
    what does not fill such a batch is left out. In evaluation they deal out whole batches in
    turn, so that every batch is computed as a single process would; who is left without a last
    batch reads one image of padding, as sharded models need all processes to keep in step.

    Args:
        size: number of images.
        batch_size: images in a batch of one process.
        train: whether to shuffle, and to draw new random numbers in each epoch.
        seed: of the order and of the random numbers; evaluation does not depend on it.
        rank: number of this process.
        world_size: number of processes.
        skip: numbers of batches to leave out in evaluation, as they are done already.

    Raises:
        DataError: there is not a single batch.

    Example:
        >>> sampler = ShardedSampler(5, 2, train=False)
        >>> [request.position for request in sampler]
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        skip: Collection[int] = (),
    ) -> None:
        # Lightning leaves the order of this class alone.
        super().__init__(range(size), world_size, rank, shuffle=train, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.batch_size = batch_size
        self.train = train
        self.start = 0
        self.todo = [n for n in range(-(-size // batch_size)) if n not in skip]
        self.batches = size // (batch_size * world_size)
        if not (self.batches if train else size):
            raise DataError(
                f"there are {size} images, which do not make one batch of "
                f"{batch_size * world_size}; use a smaller batch_size"
            )

    def __len__(self) -> int:
        if self.train:
            return self.batches * self.batch_size
        return sum(len(batch) for batch, _ in self._evaluation())

    def __iter__(self) -> Iterator[ImageRequest]:
        if not self.train:
            for batch, padding in self._evaluation():
                yield from (ImageRequest(index, padding=padding) for index in batch)
            return
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        for number in range(self.start, self.batches):
            begin = (number * self.num_replicas + self.rank) * self.batch_size
            for index in order[begin : begin + self.batch_size].tolist():
                yield ImageRequest(index, (self.seed, self.epoch), train=True)

    def _evaluation(self) -> Iterator[tuple[range, bool]]:
        """The images of each batch, and whether they are padding."""
        for turn in range(0, len(self.todo), self.num_replicas):
            if turn + self.rank < len(self.todo):
                begin = self.todo[turn + self.rank] * self.batch_size
                yield range(begin, min(begin + self.batch_size, self.size)), False
            else:
                yield range(1), True


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that goes on within an epoch, from a state that Lightning keeps."""

    sampler: ShardedSampler

    _position = (0, 0)

    def __iter__(self) -> Any:
        # A generator, so that nothing is read before the trainer has set the epoch.
        epoch = self.sampler.epoch
        images = self._position[1] if self._position[0] == epoch else 0
        joint = self.sampler.batch_size * self.sampler.num_replicas
        self.sampler.start = images // joint
        images = self.sampler.start * joint
        for batch in super().__iter__():
            images += joint
            self._position = (epoch, images)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, the number of its images that all processes have read, and the seed."""
        epoch, images = self._position
        return {"epoch": epoch, "images": images, "seed": self.sampler.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._position = (state["epoch"], state["images"])
        self.sampler.seed = state["seed"]
        self.sampler.set_epoch(state["epoch"])
