"""Runs all recipes at all widths over several seeds, and prints the table of docs/results.md.

Every row starts from one float network, a `.keras` file or trained here first, and is compared
with that network trained on for as many epochs. What is finished is not run again, and an
interrupted run goes on.

Example: python tools/results.py --data_dir=cifar10 --out=runs/results --jobs=2
"""

import json
import os
import pathlib
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

# Runs from a checkout, as a script and as a module.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags

from kerasq.support import progress, tables
from kerasq.support.files import save_figure
from tools import processes

_DATA_DIR = flags.DEFINE_string("data_dir", None, "An image folder, see recipes.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the runs.", required=True)
_MODEL = flags.DEFINE_string("model", "resnet8", "Network to train, or a .keras file.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs of each row, a multiple of 12.", 12)
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 60, "Epochs of the float network.", 1)
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time; the cores are shared among them.", 1)

_TUNE = ("--learning_rate=0.01", "--momentum=0.9", "--batch_norm=keep")
# Sizes are those of packed weights, which a processor must be named for.
_PACKED = "--target=litert-x86-64"
_START, _FLOAT = "float at the start", "float"
_LAYERS = "optimized_kernels"  # What results.json calls the comparison, layer by layer.
_BASE = "qat w8a8"  # Its runs fine-tune the float network as well.
# By name: recipe and flags. Those of every row come on top.
ROWS: dict[str, tuple[str, ...]] = {
    _BASE: ("qat", *_TUNE, "--float_finetune"),
    "ptq w8a8": ("ptq",),
    "qat w8a8 distilled": ("qat", *_TUNE, "--distill_weight=0.5"),
    "qat w4a8": ("qat", *_TUNE, _PACKED, "--scheme=w4a8"),
    "qat w8a16": ("qat", *_TUNE, "--scheme=w8a16"),
    "qat w8a8, power of two": ("qat", *_TUNE, "--scales=power_of_two"),
    "mixed 75 % of the bytes": ("mixed_precision", *_TUNE, _PACKED, "--budget=bytes=75%"),
    "inq 5 bits": ("inq", *_TUNE, "--bits=5"),
    "inq 5 bits distilled": (
        "inq",
        *_TUNE,
        "--bits=5",
        "--learning_rate=0.03",
        "--distill_weight=0.5",
    ),
    "inq 4 bits": ("inq", *_TUNE, "--bits=4"),
    "inq 3 bits": ("inq", *_TUNE, "--bits=3"),
    "inq 2 bits": ("inq", *_TUNE, "--bits=2"),
    "lsq w4a4": ("low_bit", _PACKED, "--scheme=w4a4"),
    "lsq w3a3": ("low_bit", _PACKED, "--scheme=w3a3"),
    "lsq w2a2": ("low_bit", _PACKED, "--scheme=w2a2", "--learning_rate=0.1"),
    "pact w4a4": ("low_bit", _PACKED, "--scheme=w4a4", "--quantizer=pact"),
    "dorefa w4a4": ("low_bit", _PACKED, "--scheme=w4a4", "--quantizer=dorefa"),
    "twn w2a8": ("low_bit", _PACKED, "--quantizer=twn"),
    "ttq w2a8": ("low_bit", _PACKED, "--quantizer=ttq"),
    "binary w1a8": ("low_bit", _PACKED, "--quantizer=binary"),
}

_ROWS = flags.DEFINE_multi_enum("row", list(ROWS), list(ROWS), "Rows to run, a flag for each.")
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def run(name: str, seed: str, model: str, threads: int) -> dict:
    """One run of a row; its results.json."""
    recipe, *options = ROWS[name]
    out = pathlib.Path(_OUT.value) / _folder(name) / f"seed{seed}"
    if recipe != "ptq":
        options.append(f"--epochs={_EPOCHS.value}")
    _call(recipe, [*options, f"--model={model}", f"--seed={seed}"], out, threads)
    return json.loads((out / "results.json").read_text())


def _call(recipe: str, options: list[str], out: pathlib.Path, threads: int) -> None:
    """Runs a recipe, its output in <out>.log."""
    data = ["--dataset=image_folder", f"--data_dir={_DATA_DIR.value}", f"--out={out}"]
    out.mkdir(parents=True, exist_ok=True)
    script = str(_ROOT / f"recipes/{recipe}.py")
    processes.run([script, *options, *data], pathlib.Path(f"{out}.log"), threads)


def _accuracy(name: str, result: dict) -> float:
    keys = {_START: "float_accuracy", _FLOAT: "float_finetuned_accuracy"}
    return 100 * result[keys.get(name, "tflite_accuracy")]


def _seconds(name: str, result: dict) -> float:
    own = result["seconds"]
    if name == _FLOAT:
        return own["float_finetune"]
    return sum(value for stage, value in own.items() if stage != "float_finetune")


def rows(found: dict[str, list[dict]]) -> list[list[str]]:
    """The table: mean and spread of the accuracy, the loss to float, time of the quickest seed."""
    header = ["", "accuracy (%)", "least", "greatest", "over float", "LSB", "bytes", "minutes"]
    floats = np.array([_accuracy(_FLOAT, x) for x in found[_FLOAT]])
    table = [header]
    for name, results in found.items():
        values = np.array([_accuracy(name, x) for x in results])
        numbers = [f"{x:.2f}" for x in (values.mean(), values.min(), values.max())]
        # Differences by seed: float and quantized runs of a seed see the same batches.
        over = "" if name == _FLOAT else f"{np.mean(values - floats):+.2f}"
        table.append([name, *numbers, over, *_costs(name, results)])
    return table


def _costs(name: str, results: list[dict]) -> list[str]:
    """LSB of the worst layer, bytes and minutes, as far as a row has them."""
    is_float = name in (_START, _FLOAT)
    size = results[0]["float_bytes" if is_float else "tflite_bytes"]
    compared = [] if is_float else [x[_LAYERS] for x in results if _LAYERS in x]
    lsb = f"{max(x['worst_layer_max_lsb'] for x in compared):g}" if compared else ""
    minutes = min(_seconds(name, x) for x in results) / 60
    return [lsb, f"{size:,}", "" if name == _START else f"{minutes:.1f}"]


def plot(found: dict[str, list[dict]], path: pathlib.Path) -> None:
    """Accuracy of each row with its spread, against the float network's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.3 * len(found)), layout="constrained")
    axes = figure.subplots()
    for y, (name, results) in enumerate(found.items()):
        values = [_accuracy(name, x) for x in results]
        axes.plot(values, [y] * len(values), "o", color="C7", ms=4)
        axes.plot([np.mean(values)], [y], "|", color="C0", ms=14, mew=3)
    reference = statistics.mean([_accuracy(_FLOAT, x) for x in found[_FLOAT]])
    axes.axvline(reference, color="C1", lw=1, label="float, trained as long")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on the test images (%); bars: means over seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right")
    save_figure(figure, path)


def main(_: list[str]) -> None:
    """Trains the float network, runs every row and seed, prints and plots."""
    out = pathlib.Path(_OUT.value)
    threads = max(1, (os.cpu_count() or 1) // _JOBS.value)
    if _EPOCHS.value % 12:
        sys.exit(f"`epochs` must be a multiple of 12, for INQ's steps. Received: {_EPOCHS.value}.")
    base = ["--float_only", f"--model={_MODEL.value}", f"--float_epochs={_FLOAT_EPOCHS.value}"]
    _call("qat", base, out / "network", os.cpu_count() or 1)
    model = str(out / "network" / "float.keras")
    names = [_BASE, *(name for name in _ROWS.value if name != _BASE)]
    jobs = [(name, seed) for name in names for seed in _SEEDS.value]
    with ThreadPoolExecutor(_JOBS.value) as pool:
        runs = pool.map(lambda job: run(job[0], job[1], model, threads), jobs)
        done = list(progress.track(runs, len(jobs), "run"))
    found: dict[str, list[dict]] = {name: [] for name in names}
    for (name, _seed), result in zip(jobs, done, strict=True):
        found[name].append(result)
    found = {_START: found[_BASE], _FLOAT: found[_BASE], **found}
    plot(found, out / "results.png")
    print(tables.markdown(rows(found)))


if __name__ == "__main__":
    app.run(main)
