"""Convolutions in three dimensions as one in two: against Keras, the interpreters, in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

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
    networks.set_seed(0)
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
    lite = kerasq.export_tflite(q, check=False)
    names = [op.name for op in lite.ops]
    assert lite.float_ops == [] and names.count("CONV_2D") == 1
    # Sums are rounded once, a ReLU with them; frames only move.
    computes = {"CONV_2D", *(["LOGISTIC"] if name == "no_bias" else [])}
    assert {*names} - computes <= {"PAD", "RESHAPE", "STRIDED_SLICE", "CONCATENATION", "GATHER"}
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 33


@pytest.mark.parametrize("make", [L.Conv3D, L.Conv3DTranspose])
def test_one_layer_on_images_of_two_sizes(make, capsys):
    networks.set_seed(0)
    x, layer = keras.Input((4, 5, 6, 3), name="x"), make(3, 3, name="conv")
    model = keras.Model(x, [layer(x), layer(keras.ops.pad(x, [(0, 0), *[(1, 2)] * 3, (0, 0)]))])
    data = networks.data(model, 8, scale=1.0)
    q = networks.quantized(model, data)
    assert "Train apart, a copy for each call: weights of 'conv'." in (capsys.readouterr().out)
    lite = kerasq.export_tflite(q, check=False)
    for want, got in zip(networks.run(q, data), lite.predict(data).values(), strict=True):
        np.testing.assert_array_equal(got, want)
    for want, got in zip(networks.run(model, data), networks.run(q, data), strict=True):
        assert np.square(want - got).sum() < 1e-3 * np.square(want).sum()


@pytest.mark.parametrize("scheme", ["w8a16", "w4a8", "w4a16"])
def test_conv_3d_at_other_widths(scheme):
    model = network(groups=2, padding="same", activation="relu")
    x = networks.data(model, 16, scale=1.0)
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


@pytest.mark.parametrize("target", ["litert-x86-64", "tflm"])
@pytest.mark.parametrize("scheme", ["w4a8", "w2a8"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: L.Conv2D(6, 3, groups=3, strides=2, activation="relu"), (7, 7, 6)),
        (lambda: L.Conv1D(8, 3, groups=2, padding="same"), (9, 4)),
    ],
)
def test_groups_of_few_bits(make, shape, scheme, target):
    networks.set_seed(0)
    x = keras.Input(shape, name="x")
    model = keras.Model(x, make()(x))
    data = networks.data(model, 16, scale=1.0)
    q = networks.quantized(model, data, scheme=scheme, target=target)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == [] and "CONV_2D" in {op.name for op in lite.ops}
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))


TRANSPOSED = {
    "points": (lambda: L.Conv3DTranspose(3, 2, strides=2, name="conv"), (3, 4, 3, 2)),
    "same": (
        lambda: L.Conv3DTranspose(
            3, 3, strides=(2, 1, 3), padding="same", activation="relu", name="conv"
        ),
        (3, 2, 3, 2),
    ),
    "more": (
        lambda: L.Conv3DTranspose(
            2, (2, 3, 2), strides=2, output_padding=1, use_bias=False, name="conv"
        ),
        (2, 3, 3, 2),
    ),
    "gaps": (lambda: L.Conv3DTranspose(2, 2, strides=3, name="conv"), (2, 2, 2, 1)),
    "dilated_3d": (lambda: L.Conv3DTranspose(2, 2, dilation_rate=2, name="conv"), (3, 3, 3, 2)),
    "dilated_2d": (
        lambda: L.Conv2DTranspose(3, (3, 2), dilation_rate=(2, 3), name="conv"),
        (5, 6, 2),
    ),
    "dilated_same": (
        lambda: L.Conv2DTranspose(3, (2, 4), dilation_rate=3, padding="same", name="conv"),
        (5, 6, 2),
    ),
    "dilated_1d": (
        lambda: L.Conv1DTranspose(2, 3, dilation_rate=2, activation="tanh", name="conv"),
        (7, 3),
    ),
}


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, "litert") for name in TRANSPOSED] + [("same", "tflm"), ("dilated_2d", "tflm")],
)
def test_transposed(name, target):
    networks.set_seed(0)
    make, shape = TRANSPOSED[name]
    x = keras.Input(shape, name="x")
    conv = make()
    model = keras.Model(x, conv(x))
    if conv.use_bias:
        conv.bias.assign([0.3, -0.2, 0.1][: conv.filters])
    data = networks.data(model, 16, scale=1.0)
    # Of dilated ones in 3D TensorFlow has no kernel of its own on processors without oneDNN's.
    want = np.asarray(tf.function(model, jit_compile=True)(data))
    equal = decompose(graphs.read(model)).model
    np.testing.assert_allclose(networks.run(equal, data), want, atol=1e-5)
    q = networks.quantized(model, data, target=target)
    lite = kerasq.export_tflite(q, check=False)
    names = [op.name for op in lite.ops]
    assert lite.float_ops == [] and names.count("CONV_2D") == 1 and "TRANSPOSE_CONV" not in names
    got = networks.run(q, data)
    np.testing.assert_array_equal(lite.predict(data), got)
    # 30 dB.
    assert np.square(want).sum() > 1000 * np.square(want - got).sum()


def test_one_kernel_trains_and_is_saved(tmp_path):
    x = keras.Input((4, 6, 6, 2), name="x")
    conv = L.Conv3D(3, 3, padding="same", name="conv")
    y = L.ReLU()(L.BatchNormalization()(conv(x)))
    model = keras.Model(x, L.GlobalAveragePooling3D()(y))
    data = networks.data(model, 16)
    q = networks.quantized(model, data)
    (kernel,) = [v for v in q.trainable_variables if v.path.endswith("conv/kernel")]
    assert kernel.shape == (3, 3, 6, 3)
    before = kernel.numpy()
    q.compile("adam", "mse")
    q.fit(data, np.ones((16, 3)), verbose=0)
    assert (before != kernel.numpy()).mean() > 0.9
    lite = kerasq.export_tflite(q)
    # BatchNormalization and ReLU are part of the convolution.
    assert lite.float_ops == [] and not {"RELU", "DEPTHWISE_CONV_2D"} & {op.name for op in lite.ops}
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(networks.run(loaded, data), networks.run(q, data))
