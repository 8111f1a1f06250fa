"""Elementwise bijections of the real line, as pure functions of their input and parameters."""

from .affine import Additive, Affine, SigmoidAffine
from .base import Univariate
from .bspline import MonotoneBSpline
from .inverse import Inverse
from .rational_quadratic import RationalQuadratic

__all__ = [
    "Additive",
    "Affine",
    "Inverse",
    "MonotoneBSpline",
    "RationalQuadratic",
    "SigmoidAffine",
    "Univariate",
]
