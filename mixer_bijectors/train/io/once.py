"""Lines that one process prints for all."""

from lightning.pytorch.utilities import rank_zero_only

__all__ = ["print_once"]

print_once = rank_zero_only(print)
