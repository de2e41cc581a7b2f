"""The site's generator, Sphinx: `bash tools/site` builds it from these pages and the docstrings."""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

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
# looks public, but is not there, is an error; these are modules, and names in files.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!kerasq\.\w+$).*|kerasq\.(made|preprocessing|registry|scheme|targets)")
]


def link_names(app: Any, page: nodes.document) -> None:
    """Makes a link of code in the text of pages that names what is public, or should."""
    del app
    for code in [*page.findall(nodes.literal)]:
        found = re.match(r"kerasq\.\w+(?=\(|$)", code.astext())
        if found and not isinstance(code.parent, (nodes.reference, addnodes.pending_xref)):
            link = addnodes.pending_xref(refdomain="py", reftype="obj", reftarget=found[0])
            code.replace_self(link)
            link += code


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", link_names)
