"""The table of docs/results.md, from rows of tiny runs."""

import json

import numpy as np
import pytest
from PIL import Image

from tests import processes


def script(*arguments):
    done = processes.script(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_table(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(48):
        folder = tmp_path / "images" / ("test" if i % 3 == 0 else "train") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (8, 8, 3), "uint8") + np.uint8(100 * (i % 2))
        Image.fromarray(pixels).save(folder / f"{i}.png")
    out, data = tmp_path / "out", f"--data_dir={tmp_path / 'images'}"
    flags = [data, f"--out={out}", "--model=cnn", "--seeds=0", "--float_epochs=1", "--epochs=12"]
    text = script("tools/results.py", *flags, "--row=qat w8a8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in table]
    assert names[2:] == ["float at the start", "float", "qat w8a8"]
    result = json.loads((out / "qat_w8a8" / "seed0" / "results.json").read_text())
    cells = [cell.strip() for cell in table[4].split("|")]
    assert cells[2] == cells[3] == cells[4] == f"{100 * result['tflite_accuracy']:.2f}"
    over = 100 * (result["tflite_accuracy"] - result["float_finetuned_accuracy"])
    assert (cells[5], cells[7]) == (f"{over:+.2f}", f"{result['tflite_bytes']:,}")
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    # The same run again, for the table of a single row.
    one = [f"--out={out / 'qat_w8a8'}", "--seeds=0", "--", "recipes/qat.py", data]
    one += ["--dataset=image_folder", f"--model={out / 'network' / 'float.keras'}", "--epochs=12"]
    one += ["--learning_rate=0.01", "--momentum=0.9", "--batch_norm=keep", "--float_finetune"]
    text = script("tools/repeat.py", *one)
    assert "finetune: finished before" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("| float  ")]
    assert float(row[3]) == pytest.approx(100 * result["float_accuracy"], abs=1e-3)
