"""Conditioners: nets that compute parameters of bijections from a part of the data."""

from .kan import KAN
from .mixer import Mixer
from .patch_conv import PatchConv
from .residual_mlp import ResidualMLP
from .transformer import CausalTransformer, Transformer

__all__ = ["KAN", "CausalTransformer", "Mixer", "PatchConv", "ResidualMLP", "Transformer"]
