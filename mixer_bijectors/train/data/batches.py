"""Batches of images whose order and randomness depend on a seed and positions alone.

So a run that was cut off goes on with the very batch that it would have had, and any number of
processes see the same images with the same noise.
"""

import operator
import os
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..io.errors import DataError, ImageError

__all__ = ["Batch", "Draw", "Drawn", "ResumableLoader", "ShardedSampler", "Source", "mix"]


class Batch(NamedTuple):
    """Images, and what is known of them.

    Attributes:
        images: uint8 (batch, channels, height, width).
        labels: (batch,), or None.
        indices: position of each image in its dataset.
        seeds: what each image's random numbers depend on, whatever batch it is in.
        padding: whether an image is there to fill a batch, and counts for nothing.
    """

    images: Tensor
    labels: Tensor | None = None
    indices: Sequence[int] = ()
    seeds: Sequence[int] = ()
    padding: Sequence[bool] = ()

    @property
    def kept(self) -> list[int]:
        """Positions in the batch of the images that count."""
        if not self.padding:
            return list(range(len(self.images)))
        return [position for position, padding in enumerate(self.padding) if not padding]


class Draw(NamedTuple):
    """One image to read: its position in the dataset, and what its seed depends on beside."""

    position: int
    key: tuple[int, ...] = ()
    train: bool = False
    padding: bool = False

    def seed(self) -> int:
        """Of all that is random in the image."""
        return mix(*self.key, self.position)


_Sample = tuple[Draw, int, Tensor | None, int | None]


class Source(Protocol):
    """A dataset: how many images, and how one is read.

    `read` gets a source of random numbers in training and None in evaluation, and returns
    pixels, uint8 of `image_shape`, and a label, or None. It raises `ImageError` for an image
    that cannot be read. `name` is what a user knows an image by, such as its file.
    """

    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, index: int, rng: random.Random | None) -> tuple[Tensor, int | None]: ...

    def name(self, index: int) -> str: ...


def mix(*numbers: int) -> int:
    """A seed of 63 bits that depends on all of the numbers, none of them negative.

    Example:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)
    """
    # With their number, since zeros at the end make no difference to numpy.
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def seed_generators(*numbers: int) -> None:
    """Seed the global generators of torch, numpy and Python, which models may draw from."""
    seed = mix(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - normflows' residual flows draw from it
    random.seed(seed)


def run_seed() -> int:
    """What Lightning's `seed_everything` was called with, in this process or its parent."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


class ShardedSampler(DistributedSampler[Draw]):
    """What each process reads, such that it makes no difference how many there are.

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
        >>> [draw.position for draw in sampler]
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
        # What Lightning recognises, so that it leaves the order alone.
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

    def __iter__(self) -> Iterator[Draw]:
        if not self.train:
            for batch, padding in self._evaluation():
                yield from (Draw(index, padding=padding) for index in batch)
            return
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        for number in range(self.start, self.batches):
            begin = (number * self.num_replicas + self.rank) * self.batch_size
            for index in order[begin : begin + self.batch_size].tolist():
                yield Draw(index, (self.seed, self.epoch), train=True)

    def _evaluation(self) -> Iterator[tuple[range, bool]]:
        """What is read of each batch, and whether it is padding."""
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
        """Where the run is: the epoch, what all processes have read of it, and its seed."""
        epoch, images = self._position
        return {"epoch": epoch, "images": images, "seed": self.sampler.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._position = (state["epoch"], state["images"])
        self.sampler.seed = state["seed"]
        self.sampler.set_epoch(state["epoch"])


class Drawn(Dataset[Any]):
    """Reads what a sampler draws, and puts it into batches.

    Args:
        source: where images are read.
        flip: mirror half of the images in training.
        order: a permutation of the pixels of all images, or None.
        skip_bad: in place of an image that cannot be read, take the next one in training, and
            none in evaluation.
        labels: which labels the model knows; None if they are not looked at.
        numbers: the label of the model for each of the source, or None if they are the same.

    Attributes:
        bad: which images could not be read, in memory that workers share.
    """

    def __init__(
        self,
        source: Source,
        *,
        flip: bool = False,
        order: Tensor | None = None,
        skip_bad: bool = False,
        labels: range | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.source = source
        self.labels = labels
        self.numbers = numbers
        self.flip = flip
        self.order = order
        self.skip_bad = skip_bad
        self.bad = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> _Sample | DataError:
        seed = draw.seed()
        rng = random.Random(seed)
        try:
            index, pixels, label = self._read(draw, rng)
        except DataError as error:
            # Raised in a worker it would reach the user wrapped in the worker's traceback.
            return error
        if self.numbers is not None and label is not None and label >= 0:
            label = self.numbers[label]
        known = self.labels
        if known is not None and label is not None and label not in known:
            has = "no label" if label == -1 else f"the label {label}"
            return DataError(
                f"image {index} ({self.source.name(index)}) has {has}, but those of the model "
                f"are from {known.start} to {known[-1]}"
            )
        if pixels is None:
            return draw._replace(padding=True), seed, None, label
        if self.flip and draw.train and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return draw._replace(position=index), seed, pixels, label

    def _read(self, draw: Draw, rng: random.Random) -> tuple[int, Tensor | None, int | None]:
        count = len(self.source)
        for index in (*range(draw.position, count), *range(draw.position)):
            try:
                return index, *self._checked(
                    self.source.read(index, rng if draw.train else None)
                )
            except ImageError as error:
                if not self.skip_bad:
                    raise DataError(
                        f"{error}; on_bad_image: skip leaves such images out"
                    ) from error
                self.bad[index] = True
                if not draw.train:
                    return index, None, None
            except OSError as error:
                raise DataError(
                    f"{type(self.source).__name__}.read raised {type(error).__name__} at image "
                    f"{index}: {error}; for an image that cannot be read it must raise "
                    "mixer_bijectors.train.io.errors.ImageError"
                ) from error
        raise DataError(f"none of {count} images can be read")

    def _checked(self, read: Any) -> tuple[Tensor, int | None]:
        """The pixels and the label that a source has read.

        Raises:
            DataError: they are of other types, or the pixels of another shape.
        """
        shape = tuple(self.source.image_shape)
        try:
            pixels, label = read
            if isinstance(pixels, Tensor) and tuple(pixels.shape) == shape:
                return pixels, None if label is None else operator.index(label)
        except (TypeError, ValueError):
            pass
        found = [
            f"pixels of shape {tuple(part.shape)}"
            if isinstance(part, Tensor)
            else type(part).__name__
            for part in (read if isinstance(read, tuple) else [read])
        ]
        raise DataError(
            f"{type(self.source).__name__}.read returned {' and '.join(found)}; it must return "
            f"a uint8 tensor of shape {shape}, and a label, a whole number or None"
        )

    def collate(self, samples: list[_Sample | DataError]) -> Batch | DataError:
        """Samples as one batch, or what went wrong with one of them."""
        good = []
        for sample in samples:
            if isinstance(sample, DataError):
                return sample
            good.append(sample)
        draws, seeds, pixels, labels = zip(*good)
        blank = torch.zeros(self.source.image_shape, dtype=torch.uint8)
        images = torch.stack([blank if p is None else p for p in pixels])
        if self.order is not None:
            images = images.flatten(2)[:, :, self.order].view_as(images)
        # Where none of the images can be read, there might have been labels.
        known = any(y is not None for y in labels) or all(p is None for p in pixels)
        return Batch(
            images,
            torch.tensor([-1 if y is None else y for y in labels]) if known else None,
            [draw.position for draw in draws],
            list(seeds),
            [draw.padding for draw in draws],
        )
