"""Bridges to nflows, and to torch.distributions and what builds on it."""

from .distributions import to_torch_transform
from .nflows import from_nflows, to_nflows

__all__ = ["from_nflows", "to_nflows", "to_torch_transform"]
