"""Sphinx configuration: ``sphinx-build -W docs docs/_build``."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "neuroprobe"
author = "The neuroprobe developers"
version = release = installed_version("neuroprobe-clip")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "rooms"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the docstrings give types with shapes
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_google_docstring = False
default_role = "code"
# what scikit-learn adds to its estimators
autodoc_default_options = {"exclude-members": "set_score_request, set_fit_request, set_predict_request"}
# short names of attributes, such as `kind`, are those of several classes
suppress_warnings = ["ref.python"]
