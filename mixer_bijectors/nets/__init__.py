"""Conditioners: nets that turn one part of the data into the parameters for another."""

from .mlp import ResidualMLP

__all__ = ["ResidualMLP"]
