"""Lines that one process prints for all."""

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["print_once"]


def print_once(line: str) -> None:
    """Print a line in the first of all processes."""
    if not getattr(rank_zero_only, "rank", 0):
        print(line)
