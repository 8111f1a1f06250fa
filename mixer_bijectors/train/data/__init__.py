"""Images for training: where they are read, and how they come in batches."""

from .bundled import Digits, MNIST5k, Photos
from .decode import resize
from .image_data_module import ImageDataModule
from .images import Images

__all__ = ["Digits", "ImageDataModule", "Images", "MNIST5k", "Photos", "resize"]
