"""Data modules."""

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from .photos import Crops, grid_patches, load_photos

__all__ = ["Photos"]


class Photos(L.LightningDataModule):
    """RGB patches of ten photographs; batches are uint8 of shape (batch, 3, size, size).

    Training batches are random crops; validation and test batches are all patches of columns
    that no training crop touches, see `photos`.

    Args:
        size: side of the patches in pixels.
        batch_size: images in a batch.
        batches_per_epoch: training batches between two validations.
    """

    def __init__(
        self, size: int = 32, batch_size: int = 64, batches_per_epoch: int = 100
    ) -> None:
        super().__init__()
        self.size = size
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.photos = load_photos()

    def train_dataloader(self) -> DataLoader[Tensor]:
        crops = Crops(self.photos, self.size, self.batches_per_epoch * self.batch_size)
        return DataLoader(crops, self.batch_size)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._grid("val")

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self._grid("test")

    def _grid(self, split: str) -> DataLoader[Tensor]:
        return DataLoader(grid_patches(self.photos, self.size, split), self.batch_size)  # type: ignore[arg-type]
