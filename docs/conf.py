"""The site's generator, Sphinx: `bash tools/site` builds it from these pages and the docstrings."""

import kerasq

project = "kerasq"
version = release = kerasq.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["notebooks"]  # Pages link to them as files.
html_theme = "furo"
html_title = "kerasq"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
smartquotes_action = "D"  # Dashes, no quotes: those of the text are those of code.

# Links to headings are as on GitHub.
myst_heading_anchors = 3

autosummary_generate = False  # The tables lead to what is on the same page.
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Docstrings say what arguments are.
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

# Single backticks of docstrings are code, and links where they name what the reference has. What
# looks public, but is not there, is an error.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!kerasq\.\w+$).*|kerasq\.(registry|scheme|targets)")]
