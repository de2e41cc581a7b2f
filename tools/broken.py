"""A small network with two faults, which the report must find: docs/report.md shows it."""

import keras
import numpy as np

import kerasq

L = keras.layers
SHAPE = (8, 8, 3)


def network() -> keras.Model:
    """The sound network, of all that a report looks at."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = L.Conv2D(8, 3, use_bias=False, name="first")(image)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="relu")(x)
    y = L.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    x = L.Add(name="sum")([x, y])
    x = L.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, L.Dense(4, name="head")(x), name="tiny")
    model.get_layer("norm").moving_variance.assign(np.linspace(0.2, 2.0, 8))
    model.get_layer("norm").beta.assign(np.linspace(-0.1, 0.2, 8))
    return model


def samples() -> np.ndarray:
    """Images of 0..1, float32 of shape (48, 8, 8, 3), that differ in brightness."""
    rng = np.random.default_rng(0)
    brightness = rng.uniform(0.3, 1, (48, 1, 1, 3))
    return (rng.uniform(0, 1, (48, *SHAPE)) * brightness).astype(np.float32)


def broken() -> tuple[keras.Model, keras.Model, kerasq.TFLiteModel]:
    """The float network, its quantized copy and the file, with both faults.

    Layer "second" has a weight ten times as large as its others, and the ranges are calibrated on
    pixels of 0..255, where `samples` are fed.
    """
    model = network()
    kernel = model.get_layer("second").kernel.numpy()
    kernel[1, 1, 2, 3] = 10 * np.abs(kernel).max()
    model.get_layer("second").kernel.assign(kernel)
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, 255 * samples())
    return model, q, kerasq.export_tflite(q)
