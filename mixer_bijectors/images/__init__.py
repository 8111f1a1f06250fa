"""From 8-bit images to densities and back: dequantisation, bits per dimension, image grids."""

from .grids import make_grid, save_grid
from .importance_weights import importance_weighted_bits
from .levels import add_noise, bits_per_dim, dequantize, levels_and_noise, quantize

__all__ = [
    "add_noise",
    "bits_per_dim",
    "dequantize",
    "importance_weighted_bits",
    "levels_and_noise",
    "make_grid",
    "quantize",
    "save_grid",
]
