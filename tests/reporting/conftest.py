import numpy as np
import pytest

import kerasq
from tools import broken as broken_network


@pytest.fixture(scope="package")
def samples():
    return broken_network.samples()


@pytest.fixture(scope="package")
def labels():
    return np.random.default_rng(1).integers(0, 4, 48)


@pytest.fixture(scope="package")
def tiny(samples):
    """The float network, its quantized copy and the file."""
    model = broken_network.network()
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
    model, q, lite = broken_network.broken()
    folder = tmp_path_factory.mktemp("broken")
    verdict = kerasq.report(q, lite, samples, folder / "broken.html", float_model=model)
    return model, folder, verdict
