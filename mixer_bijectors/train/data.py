"""Data modules."""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from .photos import Crops, grid_patches, load_photos

__all__ = ["Digits", "Photos"]


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


class Digits(L.LightningDataModule):
    """The 1,797 digits of scikit-learn; batches are uint8 (batch, 1, 8, 8) and labels (batch,).

    A tenth of them, drawn at random with a seed that is always the same, is for validation,
    and a fifth for testing. Their 17 levels of grey are spread over the 256 of 8 bits.

    Args:
        batch_size: images in a batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        from sklearn.datasets import load_digits

        self.batch_size = batch_size
        digits = load_digits()
        images = (torch.as_tensor(digits.images) * (255 / 16)).round().to(torch.uint8)
        labels = torch.as_tensor(digits.target)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        ends = len(images) // 5, len(images) * 3 // 10
        parts = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
        self.splits = {
            split: TensorDataset(images[part].unsqueeze(1), labels[part])
            for split, part in zip(("test", "val", "train"), parts)
        }

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["train"], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["test"], self.batch_size)
