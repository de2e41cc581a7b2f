import json
import os
import re
import signal
import subprocess
import sys
import time
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


def test_kill_in_finetuning_continues_from_the_last_epoch(finished, tmp_path):
    flags = (f"--out={tmp_path}", f"--float_model={finished[0]}/float.keras", "--epochs=40")
    backup = tmp_path / "backup" / "finetune"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(*flags), cwd=ROOT, env=ENV, stdout=log, stderr=log)
        deadline = time.time() + 90
        while time.time() < deadline and process.poll() is None:
            if list(backup.glob("epoch-0000[2-9]*")):
                break
            time.sleep(0.02)
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = max(int(re.findall(r"\d+", f.name)[0]) for f in backup.glob("epoch-*.h5"))
    assert 2 <= kept < 40 and not (tmp_path / "finetuned.keras").exists()

    done = run(*flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Resuming after epoch {kept} of 40" in done.stdout
    epochs = [int(k) for k in re.findall(r"Epoch (\d+)/40", done.stdout)]
    assert epochs == list(range(kept + 1, 41))
    record = json.loads((tmp_path / "stages" / "finetune.json").read_text())
    assert len(record["figures"]["history"]["loss"]) == 40


def test_missing_float_model(tmp_path):
    done = run(f"--out={tmp_path}", "--float_model=nowhere.keras")
    assert done.returncode != 0
    assert re.search(r"must be a \.keras file.*nowhere\.keras.*does not exist", done.stderr)


def test_help_lists_the_flags_as_script_and_as_module():
    for start in (["recipes/qat.py"], ["-m", "recipes.qat"]):
        done = subprocess.run(
            [sys.executable, *start, "--help"], cwd=ROOT, env=ENV, capture_output=True, text=True
        )
        assert "Quantization-aware fine-tuning" in done.stdout
        assert "--dataset: <digits|mnist|" in done.stdout and "--learning_rate" in done.stdout


def test_flags_have_bounds():
    done = run("--epochs=-1")
    assert done.returncode != 0 and "not a non-negative integer" in done.stderr
