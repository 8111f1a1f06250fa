"""Images of a split of a dataset, before they are decoded."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .labels import Labels

__all__ = ["Item", "Split"]


class Item(NamedTuple):
    """One image.

    Attributes:
        image: its encoded bytes, the path of its file, or pixels, uint8 (channels, height,
            width); None if it is missing.
        label: from 0, -1 for none in a dataset with labels, None in one without.
        name: its file, or its number where it has none.
    """

    image: bytes | str | NDArray[np.uint8] | None
    label: int | None
    name: str


class Split(Dataset[Item]):
    """The images of a split; subclasses read them.

    Attributes:
        labels: of all images, or None.
    """

    labels: Labels | None

    def __len__(self) -> int:
        raise NotImplementedError

    def label(self, index: int) -> int | None:
        """The label of an image."""
        return None if self.labels is None else int(self.labels.values[index])
