"""MixerFlows with the inner flows of the literature, and hybrids, one function each.

Each takes the arguments of `MixerFlow` that it does not set itself.
"""

from ..models.attention_hybrid import attention_hybrid
from .couplings import affine, kan, spline
from .inner_flows import ffjord, kan_layer, maf_hybrid, residual
from .neighbourhoods import local

__all__ = [
    "affine",
    "attention_hybrid",
    "ffjord",
    "kan",
    "kan_layer",
    "local",
    "maf_hybrid",
    "residual",
    "spline",
]
