import keras
import numpy as np
import pytest

import kerasq

L = keras.layers
SHAPE = (8, 8, 3)


def net():
    """A small network of all that a report looks at."""
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


@pytest.fixture(scope="package")
def samples():
    rng = np.random.default_rng(0)
    brightness = rng.uniform(0.3, 1, (48, 1, 1, 3))
    return (rng.uniform(0, 1, (48, *SHAPE)) * brightness).astype(np.float32)


@pytest.fixture(scope="package")
def labels():
    return np.random.default_rng(1).integers(0, 4, 48)


@pytest.fixture(scope="package")
def tiny(samples):
    """The float network, its quantized copy and the file."""
    model = net()
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, samples)
    return model, q, kerasq.export_tflite(q)


@pytest.fixture(scope="package")
def made(tiny, samples, labels, tmp_path_factory):
    """The folder of a report, and its verdict."""
    model, q, lite = tiny
    folder = tmp_path_factory.mktemp("made")
    data = (samples, labels)
    return folder, kerasq.report(q, lite, data, folder / "report.html", float_model=model)


@pytest.fixture(scope="package")
def broken(samples, tmp_path_factory):
    """The folder and the verdict of a network with two faults."""
    model = net()
    kernel = model.get_layer("second").kernel.numpy()
    kernel[1, 1, 2, 3] = 10 * np.abs(kernel).max()
    model.get_layer("second").kernel.assign(kernel)
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, 255 * samples)  # They are fed as 0..1.
    folder = tmp_path_factory.mktemp("broken")
    lite = kerasq.export_tflite(q)
    verdict = kerasq.report(q, lite, samples, folder / "broken.html", float_model=model)
    return model, folder, verdict
