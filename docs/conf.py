"""Sphinx configuration."""

from pathlib import Path

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


def _copy_notebooks() -> None:
    """Put the notebooks among the pages, with links that fit there."""
    docs = Path(__file__).parent
    target = docs / "notebooks"
    target.mkdir(exist_ok=True)
    for path in (docs.parent / "notebooks").glob("*.ipynb"):
        text = (
            path.read_text()
            .replace("](../docs/", "](../")
            .replace("](../CONTRIBUTING.md", "](../extending.md")
        )
        page = target / path.name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


_copy_notebooks()
