"""Sphinx configuration."""

import json
import re
from base64 import b64decode
from pathlib import Path

from sphinx.application import Sphinx

from mixer_bijectors import __version__

project = "mixer_bijectors"
author = copyright = "The mixer_bijectors authors"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"mixer_bijectors {version}"
html_static_path = ["_static"]
html_css_files = ["cards.css"]
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_custom_sections = ["Shapes"]
napoleon_numpy_docstring = False
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they are committed with their outputs, and run by the tests


DOCS = Path(__file__).parent


def copy_notebooks(app: Sphinx) -> None:
    """Put the notebooks among the pages, with links that fit there, and a picture of each."""
    target = DOCS / "notebooks"
    target.mkdir(exist_ok=True)
    for path in (DOCS.parent / "notebooks").glob("*.ipynb"):
        text = (
            path.read_text()
            .replace("](../docs/", "](../")
            .replace("](../CONTRIBUTING.md", "](../extending.md")
        )
        page = target / path.name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
        outputs = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
        pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        page.with_suffix(".png").write_bytes(b64decode(pictures[0]))


def link_notebooks(app: Sphinx, page: str, source: list[str]) -> None:
    """Point links to notebooks at the copies, and give the gallery its pictures."""
    if page == "notebooks":
        link = r"\[(.+?)\]\(\.\./notebooks/(\w+)\.ipynb\)"
        picture = r"![\1](notebooks/\2.png) [\1](notebooks/\2.ipynb)"
        source[0] = re.sub(link, picture, source[0])
    source[0] = source[0].replace("](../notebooks/", "](notebooks/")


def setup(app: Sphinx) -> None:
    """Connect both to the build."""
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", link_notebooks)
