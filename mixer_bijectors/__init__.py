"""Bijections that normflows and nflows lack: MixerFlow and the layers it is made of."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import _former_names, images, nets, presets
from .bijection import Bijection
from .bridges import orientation
from .bridges.nflows import from_nflows, to_nflows, to_torch_transform
from .flow import Chain
from .layers.actnorm import ActNorm
from .layers.autoregressive import Autoregressive
from .layers.continuous import ContinuousFlow
from .layers.coupling import Coupling
from .layers.elementwise import Elementwise
from .layers.kan_layer import KANLayer
from .layers.lu_linear import LULinear
from .layers.mixing import ChannelMixing, PatchMixing, PixelMixing
from .layers.mixing_layer import MixingLayer
from .layers.patch_grid import CyclicShift, Patchify, Shift
from .layers.transformer_autoregressive import Guidance, TransformerAutoregressive
from .models import HybridClassifier, ImageFlow, MixerFlow, TarFlow
from .models.denoising import denoise
from .running.parallel_inverse import ParallelInverse, accelerate_sampling
from .running.reversible import reversible
from .running.reversible_chain import ReversibleChain
from .testing import check_bijection
from .univariate import Additive, Affine, MonotoneBSpline, RationalQuadratic

__version__ = "0.1.0"

_former_names.install()
orientation.watch()


if TYPE_CHECKING:
    from . import train as train
else:

    def __getattr__(name: str) -> ModuleType:
        """Import `train` when it is first asked for, since it needs an extra and is slow."""
        if name == "train":
            return importlib.import_module(".train", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    "ImageFlow",
    "KANLayer",
    "LULinear",
    "MixerFlow",
    "MixingLayer",
    "MonotoneBSpline",
    "ParallelInverse",
    "PatchMixing",
    "Patchify",
    "PixelMixing",
    "RationalQuadratic",
    "ReversibleChain",
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
    "reversible",
    "to_nflows",
    "to_torch_transform",
]
