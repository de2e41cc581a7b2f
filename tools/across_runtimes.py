"""Trained models on the kernels that they are for, and on others: accuracy and codes that differ.

Prints the table of docs/parity.md: each quantized model, exported for LiteRT and for TFLite Micro
(`kerasq.retarget`), each file run by both, on the test images. "differ" is the share of output
values that are not the simulation's, "same" that of the images in the simulation's class.

The images are those of an image folder or of an .npz file, as recipes take them.

Example: python -m tools.across_runtimes cifar10 runs/w2a2/finetuned.keras
"""

import pathlib
import warnings

import keras
import numpy as np
from absl import app

import kerasq
from kerasq.litert.runtimes import RUNTIMES
from kerasq.support import tables
from recipes import datasets, evaluation, training


def rows(name: str, model: keras.Model, test: datasets.Samples) -> list[list[str]]:
    """A row for each runtime that a model is exported for."""
    return [_row(name, kerasq.retarget(model, target), test) for target in RUNTIMES]


def _row(name: str, model: keras.Model, test: datasets.Samples) -> list[str]:
    lite = kerasq.export_tflite(model)
    simulated = training.predict(model, test.x)
    row = [name, RUNTIMES[lite.target].title, _percent(evaluation.accuracy(simulated, test))]
    for runtime in RUNTIMES:
        row += _cells(lite.content, runtime, simulated, test)
    return row


def _cells(
    content: bytes, runtime: str, simulated: np.ndarray, test: datasets.Samples
) -> list[str]:
    """Accuracy of a file on a runtime, and how far it is from the simulation."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The file was made for")
        try:
            lite = kerasq.TFLiteModel(content, target=runtime)
        except ValueError:
            return ["refused", "-", "-"]
    found = lite.predict(test.x)
    alike = evaluation.agreement("same", simulated, found)
    return [
        _percent(evaluation.accuracy(found, test)),
        _percent(float(np.mean(found != simulated))),
        _percent(alike["same"]) if alike else "-",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def main(argv: list[str]) -> None:
    """Runs each model everywhere and prints the table."""
    if len(argv) < 3:
        raise app.UsageError(f"Takes images and quantized .keras files. Received: {argv[1:]}.")
    images = argv[1]
    test = datasets.load("npz" if images.endswith(".npz") else "image_folder", images).test
    table = [["model", "file for", "simulation (%)"]]
    for runtime in RUNTIMES.values():
        table[0] += [f"{runtime.title} (%)", "differ (%)", "same (%)"]
    for path in map(pathlib.Path, argv[2:]):
        table += rows(path.parent.name, kerasq.load_model(path), test)
    print(f"{len(test.x)} images; {', '.join(map(str, RUNTIMES.values()))}\n")
    print(tables.markdown(table, left=2))


if __name__ == "__main__":
    app.run(main)
