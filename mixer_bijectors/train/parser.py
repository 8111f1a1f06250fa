"""The parser of the command, which reports a mistake in one line."""

import difflib
import inspect
import pydoc
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from .io.errors import RunError

__all__ = ["FlowParser", "nearest"]


class FlowParser(LightningArgumentParser):
    """Lightning's parser, with errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the outer parser reports the error
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise RunError(_error_line(message, parser)) from ex


def nearest(name: str, known: Iterable[str]) -> str:
    """A question for what may have been meant, or nothing.

    Example:
        >>> nearest("--temprature", ["--temperature", "--output"])
        '; did you mean --temperature?'
    """
    known = list(known)
    # A name without its prefix, such as --learning_rate for --model.learning_rate.
    within = [other for other in known if other.endswith(f".{name.lstrip('-')}")]
    found = within or difflib.get_close_matches(name, known, 1)
    return f"; did you mean {found[0]}?" if found else ""


def _error_line(message: str, parser: Any) -> str:
    """An error of jsonargparse in one line, with what may have been meant."""
    where = parser.prog.replace(" [options]", "").rpartition(" ")[2]
    parser.formatter_class = DefaultHelpFormatter
    options = re.findall(r"(?<!\S)--[\w.]+", parser.format_help())
    if found := re.search(r"unrecognized arguments: ([^\s=]+)", message):
        return f"{where}: there is no option {found[1]}{nearest(found[1], options)}"
    if found := re.search(r"does not accept option '([^']+)'", message):
        keys = {option.lstrip("-") for option in options}
        return f"{where}: the config has an unknown key {found[1]}{nearest(found[1], keys)}"
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        commands = re.findall(r"\w+", found[2])
        guess = nearest(found[1], commands) or f"; there are {', '.join(commands)}"
        return f"there is no command {found[1]}{guess}"
    if found := re.search(r"arguments are required: (.*)", message):
        return f"there is no {found[1]}; name a config, such as --config photos"
    return textwrap.shorten(f"{where}: {_reason(message)}", 400, placeholder=" ...")


def _reason(message: str) -> str:
    """The first of the reasons that jsonargparse gives for all types that a key may have."""
    keys: list[str] = []
    owner = types = ""
    for line in map(_plain, message.splitlines()):
        if found := re.match(r'Parser key "(.+?)":', line):
            keys.append(found[1])
        elif found := re.match(r"Problem with given class_path '(.+)'", line):
            owner = found[1]
        elif found := re.match(r"Subtypes: \[(.*)\]", line):
            types = found[1].replace(", ", " or ")
        elif found := re.match(r"Option '(.+)' is not accepted", line):
            name = owner.rpartition(".")[2]
            return f"{name} has no option {found[1]}{nearest(found[1], _arguments(owner))}"
        elif found := re.match(r"module '(.+)' has no attribute '(.+)'", line):
            known = dir(pydoc.locate(found[1]))
            return f"there is no {found[2]} in {found[1]}{nearest(found[2], known)}"
        elif found := re.match("(No module named .+|Not a valid class path.*)", line):
            return f"{'.'.join(keys)}: {found[1]}, which {owner} is to be found in"
        elif found := re.match(r"Expected a dot import path string: (.+)", line):
            guess = nearest(found[1], dir(pydoc.locate("mixer_bijectors.train")))
            return f"{'.'.join(keys)} must be a class path, got {found[1]}{guess}"
        elif found := re.match(r"Expected an? (.+?)\. Got value: (.*)", line):
            return f"{'.'.join(keys)} must be of type {found[1]}, got {found[2]}"
        elif found := re.match(r"Given value: (.*)", line):
            return f"{'.'.join(keys)} must be {types}, got {found[1]}"
    return "; ".join(_plain(line) for line in message.splitlines() if line.strip())


def _plain(line: str) -> str:
    """A line with types as they are written in code."""
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line.strip().removeprefix("- "))
    line = re.sub(r"\btyping\.|(?:\w+\.)+(?=Callback)", "", line)
    return line.replace("NoneType", "null")


def _arguments(class_path: str) -> Iterable[str]:
    """The names of what a class takes, with those of the classes that it hands them on to."""
    owner: Any = pydoc.locate(class_path)
    constructors = [one.__init__ for one in getattr(owner, "__mro__", ())]
    return {name for method in constructors for name in inspect.signature(method).parameters}
