"""Batches of images, and the sources from which single images are read."""

import operator
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..io.errors import DataError, ImageError
from .sampling import ImageRequest

__all__ = ["Batch", "RequestedImages", "Source", "TensorSource"]


class Batch(NamedTuple):
    """A batch of images, with labels, indices and seeds.

    Attributes:
        images: uint8 (batch, channels, height, width).
        labels: (batch,), or None.
        indices: position of each image in its dataset.
        seeds: the seed of each image's random numbers, which does not depend on the batch.
        padding: whether an image only fills the batch, and is left out of all results.
    """

    images: Tensor
    labels: Tensor | None = None
    indices: Sequence[int] = ()
    seeds: Sequence[int] = ()
    padding: Sequence[bool] = ()

    @property
    def kept(self) -> list[int]:
        """Positions in the batch of the images that count."""
        padding = self.padding or [False] * len(self.images)
        return [position for position, is_padding in enumerate(padding) if not is_padding]


class Source(Protocol):
    """Images of one split, which a data module puts into `ImageDataModule.sources`.

    Attributes:
        image_shape: (channels, height, width) of all images.
    """

    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        """The number of images."""
        ...

    def read(self, index: int, rng: random.Random | None) -> tuple[Tensor, int | None]:
        """One image, and its label or None.

        Args:
            index: number of the image.
            rng: random numbers in training, such as those of crops; None in evaluation.

        Returns:
            The pixels, uint8 of `image_shape`, and the label.

        Raises:
            ImageError: the image cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """The name by which a user knows an image, such as its file."""
        ...


class TensorSource:
    """Images in memory, uint8 (images, channels, height, width), with labels or without."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, rng: random.Random | None) -> tuple[Tensor, int | None]:
        return self.images[index], None if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        return str(index)


_Sample = tuple[ImageRequest, int, Tensor | None, int | None]


class RequestedImages(Dataset[Any]):
    """The images of a source that a sampler requests, with checks, for a `DataLoader`.

    Args:
        source: where images are read.
        flip: mirror half of the images in training.
        pixel_order: a permutation of the pixels of all images, or None.
        skip_bad: in place of an image that cannot be read, take the next one in training, and
            none in evaluation.
        known_labels: the labels that the model takes; None if labels are not checked.
        model_labels: the model's label for each label of the source; None if the model and
            the source number their classes alike.

    Attributes:
        bad: which images could not be read, in memory that workers share.
    """

    def __init__(
        self,
        source: Source,
        *,
        flip: bool = False,
        pixel_order: Tensor | None = None,
        skip_bad: bool = False,
        known_labels: range | None = None,
        model_labels: Sequence[int] | None = None,
    ) -> None:
        self.source = source
        self.flip = flip
        self.pixel_order = pixel_order
        self.skip_bad = skip_bad
        self.known_labels = known_labels
        self.model_labels = model_labels
        self.bad = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, request: ImageRequest) -> _Sample | DataError:
        seed = request.seed()
        rng = random.Random(seed)
        try:
            index, pixels, label = self._read(request, rng)
            label = self._model_label(index, label)
        except DataError as error:
            # Returned, since an error that a worker raises reaches the user wrapped in the
            # traceback of the worker.
            return error
        if pixels is None:
            return request._replace(padding=True), seed, None, label
        if self.flip and request.train and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return request._replace(position=index), seed, pixels, label

    def _read(
        self, request: ImageRequest, rng: random.Random
    ) -> tuple[int, Tensor | None, int | None]:
        """The index, pixels and label of the image, or of the next one that can be read."""
        count = len(self.source)
        for index in (*range(request.position, count), *range(request.position)):
            try:
                read = self.source.read(index, rng if request.train else None)
                return index, *self._checked(read)
            except ImageError as error:
                if not self.skip_bad:
                    raise DataError(
                        f"{error}; on_bad_image: skip leaves such images out"
                    ) from error
                self.bad[index] = True
                if not request.train:
                    return index, None, None
            except OSError as error:
                raise DataError(
                    f"{type(self.source).__name__}.read raised {type(error).__name__} at image "
                    f"{index}: {error}; for an image that cannot be read it must raise "
                    "mixer_bijectors.train.ImageError"
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

    def _model_label(self, index: int, label: int | None) -> int | None:
        """The label by which the model knows the class of an image."""
        if label is None:
            return None
        if self.model_labels is not None and label >= 0:
            if label >= len(self.model_labels):
                raise DataError(
                    f"image {index} ({self.source.name(index)}) has the label {label}, but "
                    f"class_names has {len(self.model_labels)} names"
                )
            label = self.model_labels[label]
        known = self.known_labels
        if known is not None and label not in known:
            has = "no label" if label == -1 else f"the label {label}"
            raise DataError(
                f"image {index} ({self.source.name(index)}) has {has}, but those of the model "
                f"are from {known.start} to {known[-1]}"
            )
        return label

    def collate(self, samples: list[_Sample | DataError]) -> Batch | DataError:
        """Samples as one batch, or the first error among them."""
        if errors := [sample for sample in samples if isinstance(sample, DataError)]:
            return errors[0]
        requests, seeds, pixels, labels = zip(*samples)
        blank = torch.zeros(self.source.image_shape, dtype=torch.uint8)
        images = torch.stack([blank if p is None else p for p in pixels])
        if self.pixel_order is not None:
            images = images.flatten(2)[:, :, self.pixel_order].view_as(images)
        # If no image could be read, the batch gets labels of -1, since others may have labels.
        labelled = any(y is not None for y in labels) or all(p is None for p in pixels)
        return Batch(
            images,
            torch.tensor([-1 if y is None else y for y in labels]) if labelled else None,
            [request.position for request in requests],
            list(seeds),
            [request.padding for request in requests],
        )
