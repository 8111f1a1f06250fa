"""Bijections that normflows and nflows lack: MixerFlow and the layers it is made of."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import _former_names, images, nets, presets
from .bijection import Bijection
from .bridges import from_nflows, orientation, to_nflows, to_torch_transform
from .chain import Chain
from .layers.actnorm import ActNorm
from .layers.autoregressive import Autoregressive
from .layers.continuous import ContinuousFlow
from .layers.coupling import Coupling
from .layers.elementwise import Elementwise
from .layers.kan_layer import KANLayer
from .layers.lu_linear import LULinear
from .layers.matrix_coupling import MatrixCoupling
from .layers.mixing import ChannelMixing, PatchMixing, PixelMixing, WindowMixing
from .layers.mixing_layer import MixingLayer
from .layers.patch_grid import Patchify
from .layers.shift import CyclicShift, Shift
from .layers.transformer_autoregressive import Guidance, TransformerAutoregressive
from .models import (
    DensityModel,
    HybridClassifier,
    ImageFlow,
    Jet,
    MixerFlow,
    TarFlow,
    VariationalDequantization,
)
from .models.denoising import denoise
from .running import (
    ParallelInverse,
    ReversibleChain,
    accelerate,
    accelerate_sampling,
    restore,
    reversible,
)
from .testing import check_bijection
from .univariate import (
    Additive,
    Affine,
    Inverse,
    MonotoneBSpline,
    RationalQuadratic,
    SigmoidAffine,
)

__version__ = "0.2.0"

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
    "DensityModel",
    "Elementwise",
    "Guidance",
    "HybridClassifier",
    "ImageFlow",
    "Inverse",
    "Jet",
    "KANLayer",
    "LULinear",
    "MatrixCoupling",
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
    "SigmoidAffine",
    "TarFlow",
    "TransformerAutoregressive",
    "VariationalDequantization",
    "WindowMixing",
    "accelerate",
    "accelerate_sampling",
    "check_bijection",
    "denoise",
    "from_nflows",
    "images",
    "nets",
    "presets",
    "restore",
    "reversible",
    "to_nflows",
    "to_torch_transform",
]
