"""Ways to run a flow other than its own: the sequential direction in parallel."""

from .accelerate_sampling import accelerate_sampling
from .parallel_inverse import ParallelInverse

__all__ = ["ParallelInverse", "accelerate_sampling"]
