"""Examples in docstrings and in the documentation run."""

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
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
def test_pages(page, tmp_path, monkeypatch):
    """Python blocks of a page run one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
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


def anchors(page):
    """The headings of a page as GitHub and Sphinx name them in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", ["", "nets", "train", "images", "presets"])
def test_the_reference_has_every_public_name(name):
    """By a directive of its own, or by one of the module that defines it or exports it."""
    package = importlib.import_module(f"mixer_bijectors.{name}".rstrip("."))
    reference = (ROOT / "docs" / "reference.rst").read_text()
    documented = {*re.findall(r"\.\. auto\w+:: (?:mixer_bijectors\.)?(\S+)", reference)}
    for public in package.__all__:
        thing = getattr(package, public)
        if not inspect.ismodule(thing):
            places = {f"{name}.{public}".lstrip("."), thing.__module__.partition(".")[2], name}
            assert places & documented, public


@pytest.mark.slow
def test_the_pictures_of_concepts_are_drawn(tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "draw_concepts.py"))
    script["save"].__globals__["IMAGES"] = tmp_path
    script["main"]()
    shown = "".join(page.read_text() for page in PAGES)
    for picture in tmp_path.iterdir():
        assert (ROOT / "docs" / "images" / picture.name).exists()
        assert f"images/{picture.name}" in shown


def test_the_tests_that_show_guarantees_exist():
    page = (ROOT / "docs" / "numerics.md").read_text()
    battery = (ROOT / "tests" / "test_battery.py").read_text()
    names = re.findall(r"`(test_\w+)(\.py)?`", page)
    assert len(names) > 20
    for name, file in names:
        assert (ROOT / "tests" / f"{name}.py").exists() if file else f"def {name}(" in battery
