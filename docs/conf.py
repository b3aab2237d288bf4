"""How the documentation is built: ``scripts/docs`` makes the site in ``docs/_build/html``."""

from __future__ import annotations

import os
import re
from typing import Any

from rosler_jax import __version__

project = "rosler-jax"
author = "The Rosler contributors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
# Of cells whose commands go over several lines: right in IPython, unknown to its highlighter.
suppress_warnings = ["misc.highlighting_failure"]

# Pages that run: every cell, each page in a folder of its own; the first error ends the build.
nb_execution_mode = os.environ.get("ROSLER_DOCS_EXECUTION", "cache")
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 4
myst_substitutions = {"version": version}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes are in Args and Returns
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"

html_theme = "sphinx_book_theme"
html_title = f"rosler-jax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "use_download_button": True}
linkcheck_timeout = 20


def _as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: their stars and bars are no markup, lists of names may be long."""
    text = re.sub(r"(?m)^(\s+)((?:\w+, )*\w+,)\n\s+((?:\w+, )*\w+:)", r"\1\2 \3", "\n".join(lines))
    parts = re.split(r"(``.*?``|`[^`]*`|^\s*(?:>>>|\.\.\.) .*$)", text, flags=re.MULTILINE)
    parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app: Any) -> None:
    """Before napoleon, which makes sections of them."""
    app.connect("autodoc-process-docstring", _as_rst, priority=100)
