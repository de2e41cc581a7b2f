"""Convolutions in three dimensions as one in two: against Keras, the interpreters, in training."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph as graphs
from kerasq.prepare.decompose import decompose
from tests import networks

L = keras.layers

OPTIONS = {
    "same": {"padding": "same"},
    "valid": {},
    "strided": {"strides": 2, "padding": "same"},
    "strides": {"strides": (2, 1, 3)},
    "dilated": {"dilation_rate": 2, "padding": "same"},
    "dilated_frames": {"dilation_rate": (2, 1, 1)},
    "points": {"kernel_size": 1, "strides": 2},
    "uneven": {"kernel_size": (2, 3, 1), "padding": "same", "strides": (1, 2, 1)},
    "images": {"kernel_size": (1, 3, 3), "padding": "same"},
    "relu": {"activation": "relu", "padding": "same"},
    "no_bias": {"activation": "sigmoid", "use_bias": False},
}


def network(**options):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 7, 8, 4), name="x")
    options = {"kernel_size": 3, "bias_initializer": "normal", **options}
    return keras.Model(x, L.Conv3D(6, name="conv", **options)(x))


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("name", OPTIONS)
def test_conv_3d(name, target):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    model = network(**OPTIONS[name])
    x = networks.data(model, 16, scale=1.0)
    equal = decompose(graphs.read(model, lambda layer: True)).model
    want = networks.run(model, x)
    np.testing.assert_allclose(networks.run(equal, x), want, atol=1e-5)
    q = networks.quantized(model, x, target=target)
    lite = kerasq.export_tflite(q)
    names = [op.name for op in lite.ops]
    assert lite.float_ops == [] and names.count("CONV_2D") == 1
    # Sums are rounded once, a ReLU with them; frames only move.
    computes = {"CONV_2D", *(["LOGISTIC"] if name == "no_bias" else [])}
    assert {*names} - computes <= {"PAD", "RESHAPE", "STRIDED_SLICE", "CONCATENATION", "GATHER"}
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 33


@pytest.mark.parametrize("scheme", ["w8a16", "w4a8"])
def test_conv_3d_at_other_widths(scheme):
    model = network(groups=2, padding="same")
    x = networks.data(model, 16, scale=1.0)
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


def test_one_kernel_trains_and_is_saved(tmp_path):
    x = keras.Input((4, 6, 6, 2), name="x")
    conv = L.Conv3D(3, 3, padding="same", name="conv")
    y = L.ReLU()(L.BatchNormalization()(conv(x)))
    model = keras.Model(x, L.GlobalAveragePooling3D()(y))
    data = networks.data(model, 16)
    q = networks.quantized(model, data)
    (kernel,) = [v for v in q.trainable_variables if v.path.endswith("planes/kernel")]
    assert kernel.shape == (3, 3, 6, 3)
    before = kernel.numpy()
    q.compile("adam", "mse")
    q.fit(data, np.ones((16, 3)), verbose=0)
    assert (before != kernel.numpy()).mean() > 0.9
    lite = kerasq.export_tflite(q)
    assert lite.float_ops == [] and "RELU" not in {op.name for op in lite.ops}
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(networks.run(loaded, data), networks.run(q, data))
