"""`ParallelInverse` for a transform of nflows; imported only where nflows is used."""

from nflows.transforms import Transform

from .parallel_inverse import ParallelLayer

__all__ = ["ParallelTransform"]


class ParallelTransform(ParallelLayer, Transform):
    """Solves the sequential direction of a transform of nflows, and is one itself."""
