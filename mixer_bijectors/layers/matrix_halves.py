"""The two halves of a mixer matrix, by slices: averages of models break stored indices."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FeatureHalves", "PatchHalves"]

MASKS = ("checkerboard", "columns", "rows")


@dataclass(frozen=True)
class FeatureHalves:
    """The first and the second half of the features of every patch; the first is the larger."""

    features: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of features of the two halves."""
        return (self.features + 1) // 2, self.features // 2

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The halves of a matrix (batch, patches, features)."""
        first, second = x.split(self.sizes, dim=2)
        return first, second

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """The matrix of the halves."""
        return torch.cat((first, second), dim=2)


@dataclass(frozen=True)
class PatchHalves:
    """Every other patch, and those between them, each half moved together to a smaller grid.

    Args:
        layer: the name of the layer, for messages.
        grid: (rows, columns) of the patches.
        mask: 'checkerboard', 'columns' for every other column, or 'rows'.

    Raises:
        ValueError: an unknown mask, or an odd number of what it halves.
    """

    layer: str
    grid: tuple[int, int]
    mask: str

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise ValueError(f"{self.layer}: mask must be one of {MASKS}, got {self.mask!r}")
        if self.grid[self._halved] % 2:
            raise ValueError(
                f"{self.layer}: mask={self.mask!r} needs an even number of "
                f"{('rows', 'columns')[self._halved]}, got a grid of {self.grid[0]} x "
                f"{self.grid[1]} patches"
            )

    @property
    def _halved(self) -> int:
        return 0 if self.mask == "rows" else 1

    @property
    def half_grid(self) -> tuple[int, int]:
        """(rows, columns) of one half."""
        rows, columns = self.grid
        return (rows // 2, columns) if self._halved == 0 else (rows, columns // 2)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The halves of a matrix (batch, patches, features), the first patch in the first."""
        shape = list(self.half_grid)
        shape.insert(self._halved + 1, 2)
        first, second = self._cross(*x.unflatten(1, shape).unbind(2 + self._halved))
        return first.flatten(1, 2), second.flatten(1, 2)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """The matrix of the halves."""
        halves = self._cross(
            first.unflatten(1, self.half_grid), second.unflatten(1, self.half_grid)
        )
        return torch.stack(halves, dim=2 + self._halved).flatten(1, 3)

    def _cross(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """On a checkerboard the halves change sides in every other row; its own inverse."""
        if self.mask != "checkerboard":
            return first, second
        odd = torch.arange(self.grid[0], device=first.device).view(-1, 1, 1) % 2 == 1
        return torch.where(odd, second, first), torch.where(odd, first, second)
