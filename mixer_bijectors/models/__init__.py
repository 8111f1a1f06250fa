"""Models of images."""

from .density_model import DensityModel
from .dequantization import VariationalDequantization
from .hybrid_classifier import HybridClassifier
from .image_flow import ImageFlow
from .jet import Jet
from .mixerflow import MixerFlow
from .tarflow import TarFlow

__all__ = [
    "DensityModel",
    "HybridClassifier",
    "ImageFlow",
    "Jet",
    "MixerFlow",
    "TarFlow",
    "VariationalDequantization",
]
