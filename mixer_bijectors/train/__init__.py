"""Training with Lightning; needs the extra `train`."""

try:
    import lightning  # noqa: F401
except ImportError as error:
    raise ImportError(
        'mixer_bijectors.train needs Lightning: pip install "mixer_bijectors[train]"'
    ) from error

from .checkpoints import AtomicCheckpointIO, LastCheckpoint, load_checkpoint
from .data import Digits, ImageDataModule, MNIST5k, Photos
from .errors import DataError, RunError
from .guard import Guard
from .images import Images
from .module import DensityEstimation
from .pictures import Pictures
from .tasks import FlowTrainer

__all__ = [
    "AtomicCheckpointIO",
    "DataError",
    "DensityEstimation",
    "Digits",
    "FlowTrainer",
    "Guard",
    "ImageDataModule",
    "Images",
    "LastCheckpoint",
    "MNIST5k",
    "Photos",
    "Pictures",
    "RunError",
    "load_checkpoint",
]
