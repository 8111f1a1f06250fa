"""Conditioners: nets that turn one part of the data into the parameters for another."""

from .kan import KAN
from .residual_mlp import ResidualMLP
from .transformer import CausalTransformer

__all__ = ["KAN", "CausalTransformer", "ResidualMLP"]
