"""The house keeps its order: imports run down its floors, and files of older versions load."""

import ast
import graphlib
import importlib
import pathlib
import types

import keras
import numpy as np
import pytest

import kerasq
from tests import processes

KERAS = tuple(int(x) for x in keras.__version__.split(".")[:2])
ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "kerasq"
# From the ground up, as in WORKSPACE.md: what stands on a floor imports only from it and below.
FLOORS = (
    ("support",),
    ("grid", "scheme", "scales", "layers", "graph", "legacy"),
    ("fake_quant", "fused_batch_norm", "litert"),
    ("kernels", "fits", "convertible", "requantization"),
    ("targets",),
    ("quantizers",),
    ("rule", "layer_rules", "registry"),
    ("prepare", "unsupported"),
    ("plan", "one_grid"),
    ("wrappers", "kernel_wrapper", "lstm_wrapper"),
    ("range_limits", "wrap"),
    ("quantize", "calibration", "comparison", "equalization"),
    ("retargeting", "ptq", "encodings"),
    ("export",),
    ("analysis", "firmware", "probes", "training"),
    ("reporting",),
    ("command_line", "__main__"),
)


def _modules(*folders):
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }


def _imports(path, modules):
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    # A folder that a module is taken from is not imported for its own sake.
    folders = {name.rpartition(".")[0] for name in found if name in modules}
    return {
        module
        for name in found - folders - {"kerasq"}
        for module in (name, f"{name}.__init__")
        if module in modules
    }


def test_every_module_has_a_floor():
    named = [name for floor in FLOORS for name in floor]
    assert sorted(named) == sorted(
        path.stem
        for path in PACKAGE.iterdir()
        if path.stem not in ("__init__", "__pycache__", "py")
    )


def test_no_import_runs_up():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    modules = _modules("kerasq")
    for name, path in modules.items():
        if name == "kerasq.__init__":
            continue
        own = floor[name.split(".")[1]]
        for other in _imports(path, modules):
            assert floor[other.split(".")[1]] <= own, f"{name} imports {other}"


def test_no_imports_run_in_a_circle():
    modules = _modules("kerasq", "recipes", "tools")
    graph = {name: _imports(path, modules) - {name} for name, path in modules.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # Raises a CycleError.


# The modules that may read names that Keras, TensorFlow or LiteRT keeps private.
INTERNALS = {"kerasq.graph.internals", "kerasq.graph.keras2", "kerasq.litert.partitions"}


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _defined(tree):
    """The private names that a file defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr if _owner(node) in ("self", "cls") else ""


def _owner(node):
    return node.value.id if isinstance(node.value, ast.Name) else ""


def _foreign(path, tree, ours):
    """The private names that a file reads and that are not its own.

    Of `self`, a name may be that of a base class, in another file of ours.
    """
    own = {*_defined(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            known = ours if _owner(node) in ("self", "cls") else own
            if node.attr not in known:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            for name in (x.value for x in node.args if isinstance(x, ast.Constant)):
                if isinstance(name, str) and _is_private(name) and name not in own:
                    yield node.lineno, ast.unparse(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in (getattr(node, "module", None), *(x.name for x in node.names)):
                if str(name).startswith(("keras.src", "tensorflow.python")):
                    yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("keras.src"):
            yield node.lineno, ast.unparse(node)


def test_one_module_knows_what_keras_keeps_private():
    trees = {
        name: ast.parse(path.read_text())
        for name, path in _modules("kerasq").items()
        if name not in INTERNALS
    }
    ours = {name for tree in trees.values() for name in _defined(tree)}
    assert not [name for name in ours if name.startswith("_keras")]
    found = {name: [*_foreign(name, tree, ours)] for name, tree in trees.items()}
    assert not {name: places for name, places in found.items() if places}


@pytest.mark.parametrize("name", [name for name in _modules("kerasq") if "__init__" not in name])
def test_no_function_shadows_its_module(name):
    module = importlib.import_module(name)
    parent, _, last = name.rpartition(".")
    assert isinstance(module, types.ModuleType)
    assert getattr(importlib.import_module(parent), last) is module


@pytest.mark.skipif(KERAS < (3, 15), reason="Keras reads no file of a newer Keras.")
def test_an_import_leaves_tensorflow_to_the_user():
    # Once its runtime has started, threads and devices cannot be chosen, nor the process be forked.
    code = (
        "import kerasq, tensorflow as tf; tf.config.threading.set_inter_op_parallelism_threads(1)"
    )
    done = processes.python("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["kerasq-0.1.0", "kerasq-0.1.0-shared"])
def test_saved_models_of_version_0_1_load(tmp_path, name):
    """Made by version 0.1.0, whose modules had other names; with what it predicted then."""
    q = keras.models.load_model(ROOT / f"tests/data/{name}.keras")
    expected = np.load(ROOT / f"tests/data/{name}.npz")
    np.testing.assert_array_equal(q.predict(expected["x"], verbose=0), expected["predicted"])
    q.save(tmp_path / "again.keras")
    q = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(q.predict(expected["x"], verbose=0), expected["predicted"])
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(lite.predict(expected["x"]), expected["integer"])
