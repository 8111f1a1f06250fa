"""Models of images."""

from .image_flow import ImageFlow
from .mixerflow import MixerFlow
from .tarflow import TarFlow

__all__ = ["ImageFlow", "MixerFlow", "TarFlow"]
