"""The documentation site builds without a warning, and has all that is public."""

import pathlib
import re
import shutil

import pytest
from sphinx.cmd.build import build_main

import kerasq

# Of Sphinx's extensions, to each other.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"
)
DOCS = pathlib.Path(__file__).parents[1] / "docs"


def build(source, out):
    """The status of a build as tools/site makes it: 0 where nothing was warned of."""
    trees = ["-d", str(out / "trees")]
    return build_main(["-q", "-W", "-b", "html", *trees, str(source), str(out / "html")])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    assert build(DOCS, out) == 0
    return out / "html"


def test_reference_has_all_that_is_public_once(site):
    page = (site / "reference.html").read_text()
    found = re.findall(r'<dt class="sig sig-object py" id="kerasq\.(\w+)"', page)
    assert sorted(found) == sorted(kerasq.__all__)
    assert 'id="kerasq.CheckTraining.on_epoch_end"' in page  # Methods are there, too.
    assert 'id="kerasq.targets.register"' in page


def test_every_page_is_in_the_site(site):
    pages = {str(path.relative_to(DOCS).with_suffix(".html")) for path in DOCS.rglob("*.md")}
    assert pages <= {str(path.relative_to(site)) for path in site.rglob("*.html")}


def test_notebooks_are_in_the_site(site):
    notebooks = {path.name for path in (DOCS / "notebooks").glob("*.ipynb")}
    assert notebooks <= {path.name for path in (site / "_downloads").rglob("*.ipynb")}


@pytest.mark.parametrize(
    "text",
    [
        "[a page](nowhere.md)",
        "[a heading](#nowhere)",
        "`kerasq.nowhere(x)`",
        "```{eval-rst}\n`kerasq.nowhere`\n```",
        "```{eval-rst}\n.. autofunction:: kerasq.nowhere\n```",
    ],
)
def test_broken_links_fail(tmp_path, capsys, text):
    source = tmp_path / "docs"
    shutil.copytree(DOCS / "_static", source / "_static")
    shutil.copy(DOCS / "conf.py", source)
    (source / "index.md").write_text(f"# Start\n\n{text}\n")
    assert build(source, tmp_path) == 1
    assert "nowhere" in capsys.readouterr().err
