"""Examples in docstrings and in the documentation run."""

import ast
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


def test_the_page_shows_the_function_that_was_measured():
    posterior = pytest.importorskip("posterior")
    page = (ROOT / "docs" / "bridges.md").read_text()
    assert inspect.getsource(posterior.spline_flow) in page


def test_every_public_name_has_an_example():
    for name in mb.__all__:
        public = getattr(mb, name)
        if callable(public):
            assert ">>>" in (public.__doc__ or ""), name


ROOMS = (
    ("univariate", "nets", "images"),
    ("solvers", "bijection"),
    ("flow",),
    ("chain",),
    ("layers",),
    ("bridges", "running"),
    ("models",),
    ("presets", "testing"),
    ("train",),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}


def imported_rooms(path, package):
    """Rooms that a module imports, with a room of helpers counting for nothing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.relative_to(package).parts[: -node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                room = (*base, *name.split("."))[0]
                if room in RANK:
                    yield room


def test_imports_run_one_way():
    """The order of `docs/design.md`, and what it lets pass."""
    package = Path(mb.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        for other in imported_rooms(path, package) if room in RANK else ():
            if other != room and RANK[other] >= RANK[room]:
                found.add(f"{path.relative_to(package).as_posix()} imports {other}")
    assert found <= {
        "chain.py imports layers",
        "layers/alternation.py imports bridges",
        "running/compiled.py imports bridges",
        "running/equations.py imports bridges",
    }
