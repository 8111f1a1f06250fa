"""normflows models built from this library's layers."""

from .mixerflow import MixerFlow

__all__ = ["MixerFlow"]
