"""What can go wrong outside of the program: one sentence each.

The command line prints it without a traceback, since it is put right by whoever runs the
command and not in the code: a missing file, a damaged download, a full disk.
"""

__all__ = ["DataError", "ImageError", "RunError"]


class RunError(RuntimeError):
    """Why a run cannot start or go on."""


class DataError(RunError):
    """What is wrong with a dataset or with what it was asked for."""


class ImageError(DataError):
    """Why one image cannot be read."""
