"""What is measured of models: accuracy, and how far outputs are from others."""

import keras
import numpy as np

import kerasq
from recipes import datasets, training
from recipes.results import Figures

_COMPARED_IMAGES = 1000  # of which every layer is compared


def accuracy(outputs: np.ndarray, samples: datasets.Samples) -> float:
    """The share (0..1) of rows whose largest output is the label.

    For an autoencoder the share of the variance of the images (0..1) that it gives back.
    """
    if outputs.shape != samples.x.shape:
        return float(np.mean(np.argmax(outputs, axis=-1) == samples.y))
    images = samples.x / np.float32(255)
    error = np.square(images - outputs, dtype=np.float64).sum()
    return float(1 - error / np.square(images - images.mean(axis=0), dtype=np.float64).sum())


def majority(outputs: np.ndarray, samples: datasets.Samples) -> Figures:
    """The `majority`, accuracy of always answering with the commonest class; none of images."""
    if outputs.ndim != 2:
        return {}
    counts = np.bincount(samples.y)
    return {"majority": float(counts.max() / counts.sum())}


def agreement(name: str, a: np.ndarray, b: np.ndarray) -> Figures:
    """The share (0..1) of samples of the same class; nothing where outputs are images."""
    return {name: float(np.mean(a.argmax(-1) == b.argmax(-1)))} if a.ndim == 2 else {}


def distance(reference: np.ndarray, outputs: np.ndarray) -> Figures:
    """How far outputs are from those of the float model.

    Returns:
        `float_agreement`, the share (0..1) of samples of the same class, where outputs are classes,
        and `sqnr` in dB:
        `10 log10(sum y^2 / sum (y - z)^2)`.
    """
    noise = np.square(reference - outputs, dtype=np.float64).sum()
    ratio = np.square(reference, dtype=np.float64).sum() / noise
    return {**agreement("float_agreement", reference, outputs), "sqnr": float(10 * np.log10(ratio))}


def integer(model: keras.Model, lite: kerasq.TFLiteModel, test: datasets.Samples) -> Figures:
    """Compares a quantized model with its export; prints where they differ.

    Returns:
        On the whole test set the `accuracy` of the integer kernels, the `agreement` of their
        classes with the simulation's, and the share of `exact` outputs (all 0..1); the file's size
        in `bytes` and that of its weights without biases in `kernel_bytes`; and on some of the
        images, for both kernel sets, the worst layer's difference and share of exact values (see
        `kerasq.compare`).
    """
    simulated, outputs = training.predict(model, test.x), lite.predict(test.x)
    x = test.x[:_COMPARED_IMAGES]
    optimized = kerasq.compare(model, lite, x=x)
    portable = kerasq.TFLiteModel(lite.content, kernels="reference")
    reference = kerasq.compare(model, portable, x=x)
    print(f"{lite}\n\n{optimized}\n\n{reference}")
    return {
        "accuracy": accuracy(outputs, test),
        **agreement("agreement", simulated, outputs),
        "exact": float(np.mean(simulated == outputs)),
        "bytes": len(lite.content),
        "kernel_bytes": sum(t.bytes for t in lite.tensors if t.name.endswith("/kernel")),
        "optimized": _parity(optimized),
        "reference": _parity(reference),
    }


def _parity(report: kerasq.Report) -> Figures:
    """What a comparison found, in a few figures."""
    return {
        "samples": report.samples,
        "argmax_agreement": report.argmax_agreement,
        "max_lsb": report.max_lsb,
        "exact": report.exact,
        # Layers that stay float have no steps to count.
        "worst_layer_max_lsb": max(x.max_lsb for x in report.layers if x.max_lsb is not None),
        "worst_layer_exact": min(x.exact for x in report.layers if x.exact is not None),
    }
