"""Every example in the documentation runs, and generated pages are current."""

import configparser
import doctest
import importlib
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest

import kerasq
from kerasq import registry
from kerasq.support import progress

ROOT = pathlib.Path(__file__).parents[1]
MODULES = [m.name for m in pkgutil.walk_packages(kerasq.__path__, "kerasq.")]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", float("inf"))  # On a busy machine, too.
    module = importlib.import_module(name)
    names = {"keras": keras, "kerasq": kerasq, "np": np}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    found = [t for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples]
    assert len(found) >= 4


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        exec(compile(block, page, "exec"), names)


def test_readme_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    # Of a network that has yet to be trained.
    assert lines[0].startswith("The ranges of 2 layers, from 'conv2d")
    assert lines[1:3] == ["[]", "True"]


def test_readme_names_the_versions_that_setup_allows():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    readme = " ".join((ROOT / "README.md").read_text().split())
    requirements = setup["options"]["install_requires"]
    bounds = re.findall(r"^([a-z-]+) >=([\d.]+), <([\d.]+)$", requirements, re.M)
    lowest = {name: low for name, low, _ in bounds}
    # The last version below the bound, as far as its parts are bounded: 2.21 below 2.22, 2 below 3.
    newest = {name: re.sub(r"\d+$", lambda m: str(int(m[0]) - 1), end) for name, _, end in bounds}
    packages = {"TensorFlow": "tensorflow", "Keras": "keras", "LiteRT": "ai-edge-litert"}
    for title, name in packages.items():
        assert f"{title} ({lowest[name]} to {newest[name]})" in readme
    assert lowest["numpy"] == "2.0" and f"NumPy {newest['numpy']} " in readme
    versions = re.findall(r":: (3\.\d+)$", setup["metadata"]["classifiers"], re.M)
    assert setup["options"]["python_requires"] == f">={versions[0]}"
    assert f"Python {', '.join(versions[:-1])} or {versions[-1]} " in readme


@pytest.mark.parametrize("page", [*PAGES, "WORKSPACE.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_layers_page_is_current():
    assert registry.table() in (ROOT / "docs/layers.md").read_text(), (
        "Write kerasq.registry.table() into docs/layers.md."
    )


def test_workspace_names_every_module():
    text = (ROOT / "WORKSPACE.md").read_text()
    for path in (ROOT / "kerasq").rglob("*.py"):
        assert path.name in text, path
