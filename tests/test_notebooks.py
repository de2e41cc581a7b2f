"""The notebooks run from top to bottom, and show what they say."""

import json
import pathlib

import matplotlib
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the code of a notebook, and returns the names that it has left."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict = {}

    def code(name):
        (path,) = [path for path in NOTEBOOKS if path.stem == name]
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), path.name, "exec"), names)
        return names

    yield code
    plt.close("all")


def test_classifier(run):
    names = run("classifier")
    assert names["accuracy"] > 0.9
    assert names["found"]["accuracy"] > names["accuracy"] - 0.02
    assert names["lite"].float_ops == [] and names["report"].exact == 1.0


def test_four_bits(run):
    names = run("four_bits")
    assert names["tuned"] > names["calibrated"]
    assert names["tuned"] > names["accuracy"] - 0.03
    assert names["check"].troubles == [] and names["report"].exact == 1.0


def test_inside(run):
    names = run("inside")
    assert names["report"].exact == 1.0
    assert names["found"].chosen.cost <= names["budget"]
    assert len(names["small"].content) < len(names["lite"].content)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    kept = [(x["outputs"], x["execution_count"]) for x in cells if x["cell_type"] == "code"]
    assert kept == [([], None)] * len(kept)
