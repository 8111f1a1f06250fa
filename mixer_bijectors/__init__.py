"""Bijections that normflows and nflows lack: MixerFlow and the layers it is made of."""

from . import images, nets, presets
from .actnorm import ActNorm
from .attention import Guidance, TransformerAutoregressive
from .autoregressive import Autoregressive
from .bijection import Bijection
from .continuous import ContinuousFlow
from .coupling import Coupling
from .denoising import denoise
from .elementwise import Elementwise
from .flow import Chain
from .interop import from_nflows, to_nflows, to_torch_transform
from .inversion import ParallelInverse, accelerate_sampling
from .kan import KANLayer
from .linear import LULinear
from .mixing import ChannelMixing, PatchMixing, PixelMixing
from .models import HybridClassifier, MixerFlow, TarFlow
from .patches import CyclicShift, Patchify, Shift
from .testing import check_bijection
from .univariate import Additive, Affine, MonotoneBSpline, RationalQuadratic

__version__ = "0.1.0"

__all__ = [
    "ActNorm",
    "Additive",
    "Affine",
    "Autoregressive",
    "Bijection",
    "Chain",
    "ChannelMixing",
    "ContinuousFlow",
    "Coupling",
    "CyclicShift",
    "Elementwise",
    "Guidance",
    "HybridClassifier",
    "KANLayer",
    "LULinear",
    "MixerFlow",
    "MonotoneBSpline",
    "ParallelInverse",
    "PatchMixing",
    "Patchify",
    "PixelMixing",
    "RationalQuadratic",
    "Shift",
    "TarFlow",
    "TransformerAutoregressive",
    "accelerate_sampling",
    "check_bijection",
    "denoise",
    "from_nflows",
    "images",
    "nets",
    "presets",
    "to_nflows",
    "to_torch_transform",
]
