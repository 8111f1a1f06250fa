"""Errors of files, data and settings: one sentence each.

The command line prints it without a traceback, since it is put right by whoever runs the
command and not in the code: a missing file, a damaged download, a full disk.
"""

__all__ = ["DataError", "ImageError", "RunError"]


class RunError(RuntimeError):
    """A run cannot start or go on."""


class DataError(RunError):
    """A dataset is wrong, or does not have what it was asked for."""


class ImageError(DataError):
    """One image cannot be read; a `Source` raises it, and `on_bad_image` says what follows."""
