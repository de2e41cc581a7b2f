"""What a file computes does not depend on how many samples it takes at a time."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers
ops = keras.ops


def constant(*shape):
    return np.linspace(0.1, 1.0, int(np.prod(shape)), dtype="float32").reshape(shape)


# With one sample, or for a constant, the second operand squeezes to a vector, which Keras's sum
# takes for a bias: along the last axis, or along the first of a sample.
SUMS = {
    "sequence": ((6, 6), lambda x: x + x[..., :1]),
    "sequence of other channels": ((6, 4), lambda x: x + x[..., :1]),
    "Add": ((6, 6), lambda x: L.Add()([L.Dense(6)(x), L.Dense(1)(x)])),
    "rows": ((6, 5, 6), lambda x: x + ops.max(x, (2, 3), keepdims=True)),
    "columns": ((6, 5, 5), lambda x: x + x[:, :1, :, :1]),
    "difference": ((6, 6), lambda x: x - x[..., :1]),
    "product": ((6, 6), lambda x: x * x[..., :1]),
    "constant, one channel": ((5, 1), lambda x: x + constant(1, 5, 1)),
    "constant that is a bias to Keras": ((5, 5), lambda x: x + constant(1, 5, 1)),
    "constant first": ((5, 5), lambda x: ops.add(constant(5, 1), x)),
    "constant of rows": ((5, 6, 5), lambda x: x + constant(5, 1, 1)),
    "constant of columns that are as many as rows": ((6, 6, 5), lambda x: x + constant(1, 6, 1)),
    "constant difference": ((5, 5), lambda x: x - constant(5, 1)),
    "float": ((6, 6), lambda x: L.LayerNormalization()(x) + ops.cumsum(x, 1)[..., :1]),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_tensors_that_look_like_biases(name):
    shape, make = SUMS[name]
    networks.set_seed(0)
    inner = keras.Input(shape, name="x")
    model = keras.Model(inner, make(inner))
    x = networks.data(model, 16)
    q = networks.quantized(model, x)
    want, simulated = networks.run(model, x), networks.run(q, x)
    assert 10 * np.log10(np.mean(want**2) / np.mean((want - simulated) ** 2)) > 25
    tolerance = 1e-5 if name == "float" else 0.0
    for batch_size in (1, 2):
        lite = kerasq.export_tflite(q, batch_size=batch_size)
        np.testing.assert_allclose(lite.predict(x), simulated, rtol=0, atol=tolerance)
    if name != "float":  # A float layer of one sample is Keras's own.
        ones = np.concatenate([q(one[None], training=False) for one in x])
        np.testing.assert_array_equal(ones, simulated)
        trained = np.concatenate([q(one[None], training=True) for one in x[:2]])
        assert np.abs(trained - simulated[:2]).max() < 0.1 * np.abs(simulated).max()


def test_a_model_of_a_fixed_batch_is_exported_as_it_is():
    inner = keras.Input(batch_shape=(2, 3, 4), name="x")
    model = keras.Model(inner, L.Dense(2)(ops.reshape(inner, (2, 12))))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, batch_size=2)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3, 1)])
def test_squeezing_leaves_samples_alone(shape):
    inner = keras.Input(shape, name="x")
    model = keras.Model(inner, ops.cumsum(ops.squeeze(inner)[:, 1:], 1))
    x = networks.data(model, 8)
    q = kerasq.quantize_model(model, "float", overrides={"x": "w8a8"})
    kerasq.calibrate(q, x)
    for batch_size in (1, 2):
        found = kerasq.export_tflite(q, batch_size=batch_size).predict(x)
        np.testing.assert_allclose(found, networks.run(q, x), atol=1e-6)
