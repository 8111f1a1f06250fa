"""Ways to run a flow other than its own: in parallel, or by faster code."""

from .accelerate import accelerate, restore
from .accelerate_sampling import accelerate_sampling
from .parallel_inverse import ParallelInverse

__all__ = ["ParallelInverse", "accelerate", "accelerate_sampling", "restore"]
