"""Probes: each operator alone, beside its simulation."""

import ast
import dataclasses
import pathlib
import platform
import subprocess
import sys

import keras
import numpy as np
import pytest

import kerasq
from kerasq import targets
from kerasq.litert.micro import MicroInterpreter
from kerasq.probes import networks, standalone
from kerasq.probes.make import make

# Which stand beside others: codes become int32 before labels, and no layer repeats without TILE.
NOT_ALONE = {"BROADCAST_TO", "CAST"}
if not hasattr(keras.ops, "depth_to_space"):
    NOT_ALONE |= {"DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "SLICE"}


@pytest.fixture(scope="module")
def probes():
    """Those of LiteRT."""
    return make(targets.LITERT)


@pytest.fixture
def few(monkeypatch):
    """Three operators only, to be quick."""
    kept = {name: networks.BRANCHES[name] for name in ("ADD", "ELU", "LEAKY_RELU")}
    monkeypatch.setattr(networks, "BRANCHES", kept)
    monkeypatch.setattr(
        networks, "WEIGHTED", {"FULLY_CONNECTED": networks.WEIGHTED["FULLY_CONNECTED"]}
    )


def test_there_is_one_of_every_operator_at_every_width(probes):
    found = {(probe.operator, probe.type) for probe in probes}
    # LiteRT's own is off near 0, and no file has it: tables stand for it.
    absent = NOT_ALONE | {"RSQRT"}
    assert {operator for operator, _ in found} == {*targets.LITERT.operators} - absent
    for operator, known in targets.LITERT.operators.items():
        alone = operator not in absent and not known.compares and operator != "DEQUANTIZE"
        if alone:
            # A ReLU on int8 is QUANTIZE.
            assert ((operator, "int8") in found) == (operator != "RELU")
            # Which are exported, not merely there: int16 blocks of pixels are other operators.
            assert ((operator, "int16") in found) == targets.LITERT.has(
                operator, 16
            ) or known.pass_through
    packed = {kind for kind in found if kind[1].startswith("int4")}
    assert packed == {
        ("FULLY_CONNECTED", "int4 on int8"),
        ("CONV_2D", "int4 on int16"),
        ("FULLY_CONNECTED", "int4 on int16"),
    }


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="softmax differs on Arm")
def test_all_are_exact_on_litert(probes):
    found = [standalone.check(probe, standalone.litert()[1]) for probe in probes]
    assert [each for each in found if not each.holds] == []
    assert min(each.values for each in found) > 500


def test_all_of_a_few_are_exact_on_tflite_micro(few):
    # Of all operators tests/targets/test_tflm.py knows, in the layers that they are of.
    pytest.importorskip("tflite_micro")
    found = [standalone.check(probe, MicroInterpreter) for probe in make(targets.TFLM)]
    assert [each for each in found if not each.holds] == []
    assert {each.operator for each in found} == {"ADD", "LEAKY_RELU", "FULLY_CONNECTED"}


@pytest.mark.parametrize("name", ["litert-x86-64", "litert-arm64"])
def test_packed_weights_where_a_processor_is_named(name, monkeypatch):
    monkeypatch.setattr(networks, "BRANCHES", {})
    probes = make(targets.find(name))
    assert ("CONV_2D", "int4 on int8") in {(probe.operator, probe.type) for probe in probes}
    found = [standalone.check(probe, standalone.litert()[1]) for probe in probes]
    off = {(each.operator, each.most) for each in found if not each.holds}
    # Where XNNPACK takes no packed weights, another processor's kernel is 1 step off.
    is_own = platform.machine() in targets.find(name).machines
    assert off == (set() if is_own else {("CONV_2D", 1), ("FULLY_CONNECTED", 1)})


def test_a_report_of_what_differs(few, tmp_path):
    path = tmp_path / "probes.pyz"
    report = kerasq.check_kernels(path=path)
    assert report.exact and "9 of 9 probes are exact." in str(report)
    assert str(report).startswith("LiteRT 2.")
    reference = kerasq.check_kernels(kernels="reference")
    verdicts = {row.operator: row for row in reference.rows if row.type == "int8"}
    assert not reference.exact
    assert verdicts["ADD"].holds and not verdicts["LEAKY_RELU"].holds
    assert "ELU" in verdicts["ELU"].refused and verdicts["LEAKY_RELU"].most == 1
    assert "refused" in str(reference) and " %, 1" in str(reference)

    done = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        check=True,
    )
    assert done.stdout == f"{report}\n"


def test_the_file_for_other_machines_needs_numpy_and_litert_only():
    tree = ast.parse(pathlib.Path(standalone.__file__).read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [x.name for x in node.names]
        )
    }
    assert imported - {*sys.stdlib_module_names} == {"numpy", "ai_edge_litert", "tflite_runtime"}


def test_what_was_written_is_read(probes, tmp_path):
    path = tmp_path / "probes.pyz"
    path.write_bytes(standalone.dump(probes[:3]))
    for a, b in zip(standalone.load(str(path)), probes[:3], strict=True):
        assert (a.operator, a.type, a.content) == (b.operator, b.type, b.content)
        for x, y in zip([*a.inputs, *a.outputs], [*b.inputs, *b.outputs], strict=True):
            np.testing.assert_array_equal(x, y)


def test_what_an_interpreter_gives_of_another_type_or_shape(probes):
    probe = next(each for each in probes if each.operator == "ADD" and each.type == "int8")
    cut = [probe.outputs[0][:-1], *probe.outputs[1:]]
    for outputs in (cut, [x.astype(np.int16) for x in probe.outputs]):
        changed = dataclasses.replace(probe, outputs=outputs)
        found = standalone.check(changed, standalone.litert()[1])
        assert not found.holds and "where the file has" in found.refused


def test_floats_differ_or_do_not(probes):
    probe = next(each for each in probes if each.operator == "DEQUANTIZE")
    outputs = [x.copy() for x in probe.outputs]
    outputs[0][0, 0, 0, 0] = np.nan
    found = standalone.check(dataclasses.replace(probe, outputs=outputs), standalone.litert()[1])
    assert (found.off, found.most) == (1, 1) and not found.holds


def test_nothing_checked_is_not_exact():
    assert not kerasq.KernelReport("LiteRT", []).exact


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"`kernels` and `path` are for LiteRT"):
        kerasq.check_kernels("tflm", kernels="reference")
    with pytest.raises(ValueError, match=r"`kernels` and `path` are for LiteRT"):
        kerasq.check_kernels("tflm", path=tmp_path / "probes.pyz")
    with pytest.raises(ValueError, match=r"must have an interpreter .*target 'ethos-u'"):
        kerasq.check_kernels("ethos-u")
    with pytest.raises(ValueError, match=r"`target` must be one of .* Received: target='esp32'"):
        kerasq.check_kernels("esp32")
    with pytest.raises(ValueError, match=r"must be 'optimized' or 'reference'. Received: kernels="):
        kerasq.check_kernels(kernels="fast")
    with pytest.raises(FileNotFoundError, match="directory of the file must exist"):
        kerasq.check_kernels(path=tmp_path / "none" / "probes.pyz")
