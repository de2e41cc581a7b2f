"""Runs a recipe once a seed and prints mean and spread of its figures, as a Markdown table.

Example: python tools/repeat.py --seeds=0,1,2 --out=runs/resnet8 -- \
    recipes/qat.py --dataset=image_folder --data_dir=cifar10 --float_finetune
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
from absl import app, flags

from kerasq.support import tables

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
_OUT = flags.DEFINE_string("out", None, "Folder of the runs: <out>/seed<k>.", required=True)

FIGURES = (
    ("float_accuracy", "float", 100, "%"),
    ("float_finetuned_accuracy", "float, fine-tuned alike", 100, "%"),
    ("calibrated_accuracy", "calibrated only", 100, "%"),
    ("calibrated_float_agreement", "calibrated, same class as float", 100, "%"),
    ("calibrated_sqnr", "calibrated, SQNR", 1, "dB"),
    ("finetuned_accuracy", "fine-tuned, simulated", 100, "%"),
    ("tflite_accuracy", "fine-tuned, .tflite", 100, "%"),
    ("agreement", "argmax agreement", 100, "%"),
    ("optimized_kernels.worst_layer_max_lsb", "worst layer, default kernels", 1, "LSB"),
    ("optimized_kernels.worst_layer_exact", "worst layer exact, default kernels", 100, "%"),
    ("reference_kernels.worst_layer_max_lsb", "worst layer, reference kernels", 1, "LSB"),
    ("reference_kernels.worst_layer_exact", "worst layer exact, reference kernels", 100, "%"),
    ("reference_kernels.argmax_agreement", "argmax agreement, reference kernels", 100, "%"),
    ("float_bytes", "float .tflite", 1e-3, "kB"),
    ("tflite_bytes", "integer .tflite", 1e-3, "kB"),
    ("kernel_bytes", "its weights, without biases", 1e-3, "kB"),
    ("float_ms", "float latency", 1, "ms"),
    ("tflite_ms", "integer latency", 1, "ms"),
)


def find(results: dict, path: str) -> float | None:
    """The value at a dotted path of results.json, or None."""
    value: Any = results
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def table(runs: list[dict]) -> str:
    """One row a figure: mean, least and greatest over the runs."""
    rows = [["figure", "mean", "least", "greatest", "unit"]]
    for path, title, factor, unit in FIGURES:
        values = [find(run, path) for run in runs]
        if all(value is not None for value in values):
            scaled = np.array(values, float) * factor
            figures = (scaled.mean(), scaled.min(), scaled.max())
            rows.append([title, *(f"{value:.3f}" for value in figures), unit])
    return tables.markdown(rows)


def main(argv: list[str]) -> None:
    """Runs the recipe given behind `--` and prints the table."""
    if len(argv) < 2:
        raise app.UsageError("Give the recipe and its flags behind `--`.")
    runs = []
    for seed in _SEEDS.value:
        out = pathlib.Path(_OUT.value) / f"seed{seed}"
        subprocess.run([sys.executable, *argv[1:], f"--seed={seed}", f"--out={out}"], check=True)
        runs.append(json.loads((out / "results.json").read_text()))
    print(table(runs))


if __name__ == "__main__":
    app.run(main)
