"""Elementwise bijections of the real line, as pure functions of their input and parameters."""

from .affine import Additive, Affine
from .base import Univariate

__all__ = ["Additive", "Affine", "Univariate"]
