import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
MODELS = ("float", "calibrated", "finetuned", "float_finetuned")
ARTIFACTS = [f"{name}.keras" for name in MODELS]
ARTIFACTS += ["model.tflite", "float.tflite", "curves.png", "results.json"]


def command(*arguments):
    return [sys.executable, "recipes/qat.py", *arguments]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, env=ENV, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("qat")
    flags = (f"--out={out}", "--float_epochs=6", "--epochs=1", "--float_finetune")
    done = run(*flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, flags, done.stdout


def test_results_and_artifacts(finished):
    out, _, text = finished
    results = json.loads((out / "results.json").read_text())
    assert all((out / name).stat().st_size > 0 for name in ARTIFACTS)
    for name in (*MODELS, "tflite"):
        assert 0.9 < results[f"{name}_accuracy"] <= 1.0, name
    assert 0.98 <= results["agreement"] <= 1.0
    assert results["float_ms"] > 0 and results["tflite_ms"] > 0
    assert set(results["seconds"]) >= {"float", "calibrate", "finetune", "export", "latency"}
    assert "integer .tflite" in text and "== finetune ==" in text
    assert "Epoch 6/6" in text  # Keras prints no such line for a single epoch


def test_sizes_hold_the_weights(finished):
    # 24,282 parameters: 4 bytes each in float, about 1 in int8; less means weights are missing.
    results = json.loads((finished[0] / "results.json").read_text())
    assert 4 * 24_000 < results["float_bytes"] < 4 * 24_282 + 20_000
    assert 24_000 < results["tflite_bytes"] < results["float_bytes"] / 2


def test_a_second_run_only_prints(finished):
    out, flags, _ = finished
    before = (out / "model.tflite").stat().st_mtime_ns
    again = run(*flags)
    assert again.returncode == 0 and "Epoch" not in again.stdout
    assert again.stdout.count("finished before") == 6
    assert (out / "model.tflite").stat().st_mtime_ns == before


def test_changed_flags_are_refused(finished):
    done = run(*finished[1], "--momentum=0.25")
    assert done.returncode != 0
    assert re.search(r"momentum=0\.25 \(was 0\.5\).*another --out", done.stderr)


def test_missing_float_model(tmp_path):
    done = run(f"--out={tmp_path}", "--model=nowhere.keras")
    assert done.returncode != 0
    assert re.search(r"must be a \.keras file.*nowhere\.keras.*does not exist", done.stderr)


def test_the_recipe_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "recipes.qat", "--help"],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert "Quantization-aware fine-tuning" in done.stdout


def test_flags_have_bounds():
    done = run("--epochs=-1")
    assert done.returncode != 0 and "not a non-negative integer" in done.stderr
