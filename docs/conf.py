"""Settings of the documentation site: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sleepfm.version import __version__

project = "SleepFM"
author = copyright = "The SleepFM maintainers"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"SleepFM {__version__}"
exclude_patterns = ["images"]

# Links to headings as GitHub makes them.
myst_heading_anchors = 4
# The tests run the notebooks, and the pages show them as they are.
nb_execution_mode = "off"
highlight_language = "none"
# Blocks of the manual shorten what they show with an ellipsis, which no lexer knows.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
