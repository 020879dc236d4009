"""Sphinx: `make docs`. What can be read from the code is: see generate.py, which runs before the pages are read."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import generate  # noqa: E402

from calosim import __version__  # noqa: E402

project = "calosim"
author = "The calosim developers"
copyright = f"{author}, MIT license"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "_static", "reference/_*"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_url_schemes = ["http", "https", "mailto"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("OptimizerCallable", "LRSchedulerCallable", "ArrayLike", "NDArray")}
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"calosim {release}"
html_static_path = ["_static"]
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"


def _plain(app, what, name, thing, options, lines):
    """What docstrings mean: shapes such as (B, *) and absolute values are no markup, and ``:py:`` is a piece of Python."""
    lines[:] = [re.sub(r"(?<=\()\*(?=[\w,)])|(?<=, )\*(?=[\w,)])", r"\\*", line) for line in lines]
    lines[:] = [re.sub(r":py:(`[^`]*`)", r"`\1`", line.replace("|e|", r"\|e\|")) for line in lines]


def setup(app):
    """Writes the generated pages before Sphinx looks for sources."""
    generate.write(HERE / "reference")
    app.connect("autodoc-process-docstring", _plain, priority=0)
