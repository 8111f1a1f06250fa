"""Models of images."""

from .hybrid_classifier import HybridClassifier
from .image_flow import ImageFlow
from .jet import Jet
from .mixerflow import MixerFlow
from .tarflow import TarFlow

__all__ = ["HybridClassifier", "ImageFlow", "Jet", "MixerFlow", "TarFlow"]
