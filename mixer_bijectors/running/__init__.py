"""Ways to run a flow other than its own: in parallel, by faster code, or in less memory."""

from .accelerate import accelerate, restore
from .accelerate_sampling import accelerate_sampling
from .parallel_inverse import ParallelInverse
from .reversible import reversible
from .reversible_chain import ReversibleChain

__all__ = [
    "ParallelInverse",
    "ReversibleChain",
    "accelerate",
    "accelerate_sampling",
    "restore",
    "reversible",
]
