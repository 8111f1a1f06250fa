"""Conditioners: nets that compute parameters of bijections from a part of the data."""

from .kan import KAN
from .residual_mlp import ResidualMLP
from .transformer import CausalTransformer

__all__ = ["KAN", "CausalTransformer", "ResidualMLP"]
