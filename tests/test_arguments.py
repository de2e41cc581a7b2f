"""Plausible wrong arguments: each is an error of one sentence that names what was received."""

import pathlib

import keras
import numpy as np
import pytest

import kerasq

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
Y = np.arange(4) % 2
PATH = pathlib.Path("nowhere") / "file"


@pytest.fixture(scope="module")
def made():
    """A float model, its quantized copy and the file."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, X)
    return model, q, kerasq.export_tflite(q)


# By name of the argument: calls of a float model, its quantized copy and the file.
CALLS = {
    "`path` must be a path": [
        lambda m, q, lite: kerasq.load_model(None),
        lambda m, q, lite: kerasq.load_model(m),
        lambda m, q, lite: kerasq.save_encodings(q, None),
        lambda m, q, lite: kerasq.load_encodings(q, None),
        lambda m, q, lite: kerasq.export_tflite(q, 3),
        lambda m, q, lite: kerasq.deploy(lite, None, x=X),
        lambda m, q, lite: kerasq.report(q, lite, X, None),
        lambda m, q, lite: lite.save(None),
    ],
    "`path_or_bytes` must be a path": [
        lambda m, q, lite: kerasq.TFLiteModel(None),
        lambda m, q, lite: kerasq.TFLiteModel(q),
    ],
    "`directory` must be a path": [lambda m, q, lite: kerasq.EpochBackup(None)],
    "`backup` must be a path": [lambda m, q, lite: kerasq.adaround(q, X, backup=3)],
    "`one` must be a path": [lambda m, q, lite: kerasq.compare_reports(None, None, "a.html")],
    "must be a file that exists": [
        lambda m, q, lite: kerasq.TFLiteModel(PATH),
        lambda m, q, lite: kerasq.TFLiteModel("."),
        lambda m, q, lite: kerasq.load_encodings(q, PATH),
        lambda m, q, lite: kerasq.compare_reports(PATH, PATH, "a.html"),
        lambda m, q, lite: kerasq.deploy(lite, PATH, x=X, model=q, compiled=PATH),
    ],
    "`model` must be a Keras 3 model": [
        lambda m, q, lite: kerasq.export_float_tflite(None),
        lambda m, q, lite: kerasq.export_float_tflite("model.keras"),
        lambda m, q, lite: kerasq.export_float_tflite(lite),
        lambda m, q, lite: kerasq.allocate(None, X, budget={"bytes": 9}),
        lambda m, q, lite: kerasq.distill(None, m),
        lambda m, q, lite: kerasq.distill(q, None),
        lambda m, q, lite: kerasq.report(q, lite, X, "a.html", float_model="a.keras"),
    ],
    "`model` must be built": [
        lambda m, q, lite: kerasq.export_float_tflite(keras.Sequential([keras.layers.Dense(3)])),
    ],
    "`model` must be a float model": [lambda m, q, lite: kerasq.export_float_tflite(q)],
    "must be a TFLiteModel": [
        lambda m, q, lite: kerasq.latency([q]),
        lambda m, q, lite: kerasq.compare(q, None, x=X),
    ],
    "`models` must be a list of TFLiteModels": [
        lambda m, q, lite: kerasq.latency(lite),
        lambda m, q, lite: kerasq.latency(None),
    ],
    "`overrides` must be a dict": [
        lambda m, q, lite: kerasq.quantize_model(m, overrides=["dense"]),
        lambda m, q, lite: kerasq.sensitivity(m, X, overrides=3),
    ],
    "`candidates` must be names": [lambda m, q, lite: kerasq.sensitivity(m, X, candidates=None)],
    "`sensitivity` must be what": [
        lambda m, q, lite: kerasq.allocate(m, X, budget={"bytes": 9}, sensitivity=3),
        lambda m, q, lite: kerasq.report(q, lite, X, "a.html", sensitivity=3),
    ],
    "must be a number": [
        lambda m, q, lite: kerasq.Percentile("a"),
        lambda m, q, lite: kerasq.StandardDeviations(None),
        lambda m, q, lite: kerasq.MovingAverage(None),
        lambda m, q, lite: kerasq.schedule("a", 9),
        lambda m, q, lite: kerasq.distill(q, m, weight="a"),
        lambda m, q, lite: kerasq.distill(q, m, temperature=None),
        lambda m, q, lite: kerasq.IncrementalQuantization(None),
        lambda m, q, lite: kerasq.IncrementalQuantization(epochs=None),
        lambda m, q, lite: kerasq.MagnitudePruning(None, 1),
        lambda m, q, lite: kerasq.adaround(q, X, learning_rate="a"),
    ],
    "must be an integer of at least": [
        lambda m, q, lite: kerasq.schedule(0.1, 0),
        lambda m, q, lite: kerasq.schedule(0.1, 9, warmup_steps="a"),
        lambda m, q, lite: kerasq.schedule(0.1, 9, restarts=0),
        lambda m, q, lite: kerasq.FreezeRanges(None),
        lambda m, q, lite: kerasq.latency([lite], rounds="a"),
        lambda m, q, lite: kerasq.epoch_batches(X, Y, batch_size=0),
        lambda m, q, lite: kerasq.epoch_batches(X, Y, multiple=0),
    ],
    "`x` and `y` must be arrays of equally many samples": [
        lambda m, q, lite: kerasq.epoch_batches(None, None),
        lambda m, q, lite: kerasq.epoch_batches(X, Y[:3]),
        lambda m, q, lite: kerasq.epoch_batches(X[:0], Y[:0]),
    ],
    "`data` must be arrays of real numbers": [
        lambda m, q, lite: kerasq.calibrate(q, np.array(["a", "b"])),
        lambda m, q, lite: kerasq.calibrate(q, X.astype(complex)),
    ],
    "`data` must hold as many labels": [
        lambda m, q, lite: kerasq.compare(q, lite, x=(X, None)),
        lambda m, q, lite: kerasq.compare(q, lite, x=(X, 3)),
        lambda m, q, lite: lite.evaluate((X, Y[:3]), ["accuracy"]),
    ],
    "`data` must be arrays `": [lambda m, q, lite: lite.evaluate(None, ["accuracy"])],
    "A metric must be one of Keras's": [lambda m, q, lite: lite.evaluate((X, Y), ["foo"])],
    "`histories` must be": [
        lambda m, q, lite: kerasq.plot_curves(None),
        lambda m, q, lite: kerasq.plot_curves({"loss": [1.0]}),
    ],
}


@pytest.mark.parametrize("rule", CALLS)
def test_wrong_arguments_are_named(made, rule):
    for call in CALLS[rule]:
        with pytest.raises((ValueError, OSError), match=f"{rule}.* Received: "):
            call(*made)
