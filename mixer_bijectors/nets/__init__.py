"""Conditioners: nets that turn one part of the data into the parameters for another."""

from .kan import KAN
from .mlp import ResidualMLP

__all__ = ["KAN", "ResidualMLP"]
