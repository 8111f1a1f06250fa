"""Bijections that normflows and nflows lack: MixerFlow and the layers it is made of."""

from . import images, nets
from .actnorm import ActNorm
from .coupling import Coupling
from .elementwise import Elementwise
from .flow import Chain
from .linear import LULinear
from .mixing import ChannelMixing, PatchMixing, PixelMixing
from .models import MixerFlow
from .patches import CyclicShift, Patchify, Shift
from .testing import check_bijection
from .univariate import Additive, Affine

__version__ = "0.1.0"

__all__ = [
    "ActNorm",
    "Additive",
    "Affine",
    "Chain",
    "ChannelMixing",
    "Coupling",
    "CyclicShift",
    "Elementwise",
    "LULinear",
    "MixerFlow",
    "PatchMixing",
    "Patchify",
    "PixelMixing",
    "Shift",
    "check_bijection",
    "images",
    "nets",
]
