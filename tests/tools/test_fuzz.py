"""A slice of tools/fuzz.py: random models and damaged files, and what counts as a failure."""

import json

import numpy as np
import pytest

import kerasq
from tests import networks, processes
from tools.fuzzing import checks, files, graphs, programs

DENSE = """
x0 = keras.Input((3,), name="x0")
y1 = L.Dense(2, name="f1")(x0)
model = keras.Model([x0], [y1])
checks.fill(model, "normal", seed=0)
x = checks.samples(model, "ties", count=5, seed=0)
checks.run(model, x)
"""


def test_random_models():
    tally, run = checks.Tally(), []
    graphs.run(5, 4, set(), tally, run.append)
    assert tally.failures == {}
    assert tally.done == len(run) == 5 and tally.counts["exported"] >= 1
    for program in run:
        assert program.startswith(programs.HEADER)
        assert "keras.Model(" in program and program.endswith("checks.compare(q, lite, x)\n")


@pytest.mark.parametrize(
    ("rest", "kind", "text"),
    [
        ("kerasq.calibrate(q, x)\nkerasq.export_tflite(q)", "exported", ""),
        ("kerasq.export_tflite(q)", "refused", "The ranges must come from data"),
        (
            "kerasq.calibrate(q, x)\nlite = kerasq.export_tflite(q)\n"
            'checks.fill(q, "positive", seed=1)\nchecks.compare(q, lite, x)',
            "difference",
            "outputs differ in",
        ),
        ("{}['missing']", "raw", "KeyError: 'missing'"),
        ("model(x[0][:, :2], training=False)", "raw", "ValueError: Input 0"),
        ("checks.run(model, [x[0][:, :2]])", "none", "Input 0"),
        ('kerasq.TFLiteModel(b"none")', "unloadable", "must load in the LiteRT interpreter"),
    ],
)
def test_outcomes(rest, kind, text):
    program = programs.HEADER + DENSE + "q = kerasq.quantize_model(model)\n" + rest
    verdict = checks.outcome(program)
    assert verdict.kind == kind and text in verdict.detail


def test_signatures_leave_out_names_and_numbers():
    first = checks.Verdict("raw", "KeyError in report: 'f6', 61.2 % of [1, 2]")
    second = checks.Verdict("raw", "KeyError in report: 'f12', 5e-3 % of [3]")
    assert first.signature == second.signature == "raw: KeyError in report: _, # % of _"


def test_the_smallest_failure_is_kept():
    tally = checks.Tally()
    for example in ("long", "s", "longer"):
        tally.fail(example, checks.Verdict("raw", "KeyError"))
    assert tally.failures == {"raw: KeyError": ("s", "KeyError")}


@pytest.mark.parametrize("name", ["npz", "png", "encodings"])
def test_damaged_files(name, tmp_path):
    reader = files.Reader(name, tmp_path)
    verdicts = [reader.read(0, i) for i in range(30)]
    assert not [x for x in verdicts if x.kind in checks.FAILURES]
    assert {x.kind for x in verdicts} == {"accepted", "refused"}


def test_mutations_come_from_the_seed():
    sound = bytes(range(256)) * 4
    damaged = [files.mutated(sound, np.random.default_rng([0, i])) for i in range(40)]
    assert damaged == [files.mutated(sound, np.random.default_rng([0, i])) for i in range(40)]
    assert len({*damaged, sound}) > 35


def test_a_run_goes_on_from_its_log(tmp_path):
    log = tmp_path / "fuzz.jsonl"
    before = {"part": "npz", "seed": 0, "first": 0, "counts": {"refused": 3}, "failures": {}}
    log.write_text(json.dumps(before) + "\n" + json.dumps(before | {"seed": 1}) + "\n")
    flags = ["--part=npz", f"--log={log}", "--mutations=5"]
    done = processes.script("tools/fuzz.py", *flags)
    *_, line = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["first"], sum(line["counts"].values())) == (3, 2)
    row = next(line for line in done.stdout.splitlines() if line.startswith("| npz"))
    assert row.split("|")[2].strip() == "5"


def test_training_needs_no_calibration():
    q = kerasq.quantize_model(networks.mlp())
    checks.train(q, [networks.data(q, 4)])
    kerasq.export_tflite(q)
