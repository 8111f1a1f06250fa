"""Sphinx configuration."""

from mixer_bijectors import __version__

project = "mixer_bijectors"
author = "The mixer_bijectors authors"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_custom_sections = ["Shapes"]
napoleon_numpy_docstring = False
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 2
