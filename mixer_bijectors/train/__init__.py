"""Training with Lightning; needs the extra `train`."""

try:
    import lightning  # noqa: F401
except ImportError as error:
    raise ImportError(
        'mixer_bijectors.train needs Lightning: pip install "mixer_bijectors[train]"'
    ) from error

from .data import Digits, Photos
from .module import DensityEstimation
from .pictures import Pictures

__all__ = ["DensityEstimation", "Digits", "Photos", "Pictures"]
