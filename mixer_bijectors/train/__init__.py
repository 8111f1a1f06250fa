"""Training with Lightning; needs the extra `train`."""

try:
    import lightning  # noqa: F401
except ImportError as error:
    raise ImportError(
        'mixer_bijectors.train needs Lightning: pip install "mixer_bijectors[train]"'
    ) from error

from .callbacks.guard import Guard
from .callbacks.sample_pictures import Pictures
from .data.batches import Source
from .data.bundled import Digits, MNIST5k, Photos
from .data.image_data_module import ImageDataModule
from .data.images import Images
from .density_estimation import DensityEstimation
from .io.checkpoints import AtomicCheckpointIO, LastCheckpoint, load_checkpoint
from .io.errors import DataError, ImageError, RunError
from .tasks.flow_trainer import FlowTrainer
from .tasks.output import Output
from .tasks.prediction import predict_images
from .trained import TrainedModel, load

__all__ = [
    "AtomicCheckpointIO",
    "DataError",
    "DensityEstimation",
    "Digits",
    "FlowTrainer",
    "Guard",
    "ImageDataModule",
    "ImageError",
    "Images",
    "LastCheckpoint",
    "MNIST5k",
    "Output",
    "Photos",
    "Pictures",
    "RunError",
    "Source",
    "TrainedModel",
    "load",
    "load_checkpoint",
    "predict_images",
]
