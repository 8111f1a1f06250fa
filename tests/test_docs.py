"""Examples in docstrings and in the documentation run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import normflows as nf
import pytest
import torch

import mixer_bijectors as mb

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(mb.__path__, "mixer_bijectors.")
    if not module.name.endswith(("__main__", ".cli"))
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    result = doctest.testmod(
        importlib.import_module(name),
        extraglobs={"mb": mb, "nf": nf, "torch": torch},
        optionflags=doctest.ELLIPSIS,
    )
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page):
    """Python blocks of a page run one after the other, as a reader would type them."""
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_pages_hold_no_placeholder(page):
    """Such as `@ROWS@`, where figures of a benchmark were to come."""
    text = page.read_text()
    assert not re.findall(r"@\w+@|\b(?:TODO|TBD|FIXME|XXX)\b", text)
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        cells = {len(re.split(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table


def test_the_page_shows_the_function_that_was_measured():
    posterior = pytest.importorskip("posterior")
    page = (ROOT / "docs" / "bridges.md").read_text()
    assert inspect.getsource(posterior.spline_flow) in page


def test_every_public_name_has_an_example():
    for name in mb.__all__:
        public = getattr(mb, name)
        if callable(public):
            assert ">>>" in (public.__doc__ or ""), name
