import json

import keras
import pytest

import kerasq
from tests.processes import ROOT, python, script
from tools.benchmarks import comparison, contestants
from tools.benchmarks.worker import Failed, Worker


@pytest.mark.parametrize(
    ("ratios", "target", "at_least", "verdict"),
    [
        ([1.1, 1.3, 9.0], 1.3, False, "held"),
        ([1.1, 1.31, 1.2], 1.19, False, "missed"),
        ([0.7, 0.8, 0.9], 0.8, True, "held"),
        ([0.7, 0.79, 0.9], 0.8, True, "missed"),
        ([], 0.8, True, "not measured"),
        ([2.0], None, False, ""),
    ],
)
def test_the_median_ratio_is_held_against_the_target(ratios, target, at_least, verdict):
    row = comparison.Row("step", "case", ratios, target, at_least)
    assert row.verdict == verdict
    assert len(row.cells()) == 8


def test_ratios_are_taken_round_by_round():
    found = comparison.Figures("case", "seconds", {"a": [2.0, 9.0], "b": [1.0, 3.0], "c": []}, {})
    assert found.ratios("a", "b") == [2.0, 3.0]
    assert found.ratios("a", "c") == found.ratios("a", "unknown") == []


def test_a_table_has_a_row_for_each_case():
    rows = [
        comparison.Row(what, case, ratios)
        for what, case, ratios in (
            ("road", "VGG16", [0.5, 0.7, 0.6]),
            ("size", "VGG16", [1.0]),
            ("road", "Xception", [0.9]),
            ("road", "geometric mean of 2", [0.7]),
        )
    ]
    lines = comparison.by_case(rows, ("VGG16", "Xception")).splitlines()
    assert [line.replace(" ", "") for line in (lines[0], *lines[2:])] == [
        "|case|road|size|",
        "|VGG16|0.60|1.00|",
        "|Xception|0.90|-|",
    ]
    assert comparison.by_case(rows, ()) == ""


def test_contestants_take_turns_in_their_own_processes(monkeypatch):
    monkeypatch.chdir(ROOT)
    turns, measure = [], Worker.measure

    def recorded(self, repetitions):
        turns.append(self._process.pid)
        return measure(self, repetitions)

    monkeypatch.setattr(Worker, "measure", recorded)
    bench = comparison.Benchmark(rounds=2, environment={})
    options = {"modules": "json"}
    found = bench.compare("case", {"a": ("imports", options), "b": ("imports", options)}, 3)
    assert {name: len(values) for name, values in found.figures.items()} == {"a": 2, "b": 2}
    assert all(0 < value < 10 for values in found.figures.values() for value in values)
    assert len({*turns}) == 2
    assert all({*turns[i : i + 2]} == {*turns} for i in range(0, len(turns), 2))


def test_a_contestant_that_cannot_take_part_says_why(monkeypatch):
    monkeypatch.chdir(ROOT)
    bench = comparison.Benchmark(rounds=2, environment={})
    works = ("imports", {"modules": "json"})
    found = bench.compare("case", {"a": works, "b": ("imports", {"modules": "no_such_module"})})
    assert len(found.figures["a"]) == 2 and found.figures["b"] == []
    assert "CalledProcessError" in found.failures["b"]
    assert any("CalledProcessError" in cell for row in found.rows() for cell in row)
    with pytest.raises(Failed, match="has no attribute 'nobody'"):
        Worker("nobody", {}, {})


def test_a_contestant_that_is_killed_does_not_end_the_benchmark():
    worker = Worker("imports", {"modules": "json"}, {})
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(Failed, match="signal 9"):
        worker.measure(1)
    worker.close()


@pytest.mark.parametrize("name", [x for x in contestants.STEPS if "tf" not in x])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_step_is_a_step(name, policy, monkeypatch):
    """What is timed trains: one call, one step of the optimizer."""
    before = keras.config.dtype_policy()
    made = []
    compile_ = keras.Model.compile
    monkeypatch.setattr(
        keras.Model,
        "compile",
        lambda model, *a, **k: (made.append(model), compile_(model, *a, **k)),
    )
    try:
        step = contestants.step(name, "chain1", 4, policy)
        assert step() > 0.0
        step()
        assert int(made[-1].optimizer.iterations) == 2
    finally:
        keras.config.set_dtype_policy(before)


def test_what_is_traced_is_timed_once():
    calls = []
    seconds = contestants._once(lambda: calls.append(sum(range(10**6))))
    assert seconds() == seconds() > 0.0 and len(calls) == 1


@pytest.mark.parametrize("road", [contestants.road, contestants.converter_road])
def test_the_road_leaves_its_file_and_peak_of_memory(road, tmp_path):
    path = tmp_path / "model.tflite"
    assert road("chain1", str(path))() > 0.0
    lite = kerasq.TFLiteModel(str(path))
    assert not lite.float_ops and lite.inputs[0].grid is not None
    assert int(path.with_name("model.tflite.peak").read_text()) > 0


def test_peak_memory_of_steps_is_measured():
    options = {"contestant": "Keras 3", "network": "chain2", "batch": 64, "whole": False}
    worker = Worker("step_memory", options, {"CUDA_VISIBLE_DEVICES": "-1"})
    peak = worker.measure(1)
    worker.close()
    kept = 64 * 32 * 32 * 16 * 4 * 2 * 2  # Two convolutions and two normalizations, in float32.
    assert kept < peak < 100 * kept


def test_command_line(tmp_path):
    """The command runs, prints its tables and writes the figures."""
    path = tmp_path / "figures.json"
    flags = ["--only=import", "--rounds=1", f"--json={path}"]
    done = python("-m", "tools.benchmarks.run", *flags)
    assert "import over tensorflow, keras" in done.stdout
    content = json.loads(path.read_text())
    assert content["rows"][0]["target"] == 1.1 and len(content["rows"][0]["ratios"]) == 1
    assert content["versions"]["keras"] != "not installed"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--device=gpu", "needs a GPU"),
        ("--policies=mixed_bf16", "--policies must be of float32, mixed_bfloat16"),
    ],
)
def test_bad_flags_are_named(flag, message):
    done = script("tools/benchmarks/run.py", flag)
    assert done.returncode != 0 and message in done.stdout + done.stderr
