"""Names of files and classes, and errors, as a sentence can hold them."""

from collections.abc import Sequence

__all__ = ["first_line", "printable", "some"]


def printable(text: str) -> str:
    r"""A name with its bytes spelled out where they are no text, or would break the line.

    Example:
        >>> printable("caf\udce9.png"), printable("two\nlines")
        ('caf\\xe9.png', 'two\\nlines')
    """
    text = text.encode("utf8", "surrogateescape").decode("utf8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many others there are.

    Example:
        >>> some(["a", "b", "c", "d"])
        'a, b, c and 1 other'
    """
    rest = len(names) - 3
    others = f" and {rest} other{'s' if rest > 1 else ''}" if rest > 0 else ""
    return ", ".join(map(printable, names[:3])) + others


def first_line(error: BaseException) -> str:
    """The first line of an error, of its innermost cause where `datasets` has wrapped it."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
