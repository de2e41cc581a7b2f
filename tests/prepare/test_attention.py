"""Attention in images, among all places or along some of their axes, and products of cosines."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph as graphs
from kerasq.layers import Matmul
from kerasq.prepare.decompose import decompose
from tests import networks

L = keras.layers


@pytest.mark.parametrize(
    ("shape", "axes", "target"),
    [
        ((2, 3, 4), None, "litert"),
        ((2, 3, 4), (2,), "litert"),
        ((2, 3, 4), (1,), "tflm"),
        ((2, 3, 2, 4), (1, 3), "litert"),
    ],
)
def test_places_of_an_image_attend(shape, axes, target):
    networks.set_seed(0)
    x = keras.Input(shape, name="x")
    layer = L.MultiHeadAttention(2, 3, value_dim=2, attention_axes=axes, name="heads")
    model = keras.Model(x, layer(x, x))
    for weight in model.weights:
        weight.assign(np.random.default_rng(1).normal(0.0, 0.7, weight.shape))
    data = networks.data(model, 24)
    want = networks.run(model, data)
    parts = decompose(graphs.read(model)).model
    np.testing.assert_allclose(networks.run(parts, data), want, atol=1e-5)
    q = networks.quantized(model, data, target=target)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == [] and [op.name for op in lite.ops].count("BATCH_MATMUL") == 2
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))
    assert networks.sqnr(model, q, data) > 25


def test_under_a_mask_an_image_stays_float(capsys):
    x, mask = keras.Input((2, 3, 4), name="x"), keras.Input((2, 3, 2, 3), name="mask")
    y = L.MultiHeadAttention(2, 3, name="heads")(x, x, attention_mask=mask)
    kerasq.quantize_model(keras.Model([x, mask], L.Dense(2)(y)))
    assert "'heads' (MultiHeadAttention: integer only of sequences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("axes", "shapes", "scheme"),
    [((1, 2), [(4, 6), (3, 4)], "w8a8"), (-1, [(9,), (9,)], "w8a16")],
)
def test_cosines_are_integer(axes, shapes, scheme):
    inputs = [keras.Input(shape, name=name) for name, shape in zip("ab", shapes, strict=True)]
    model = keras.Model(inputs, L.Dot(axes, normalize=True, name="cosines")(inputs))
    x = networks.data(model, 64)
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == [] and [op.name for op in lite.ops].count("L2_NORMALIZATION") == 2
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 25


def test_products_of_stacks_that_are_broadcast():
    many, one = keras.Input((4, 2, 6), name="many"), keras.Input((1, 6, 3), name="one")
    assert Matmul()([many, one]).shape == (None, 4, 2, 3)
    turned = keras.Input((4, 3, 6))
    assert Matmul(transpose=True)([keras.Input((1, 2, 6)), turned]).shape == (None, 4, 2, 3)
    with pytest.raises(ValueError, match="must have as many axes"):
        Matmul()([keras.Input((4, 6)), one])


@pytest.mark.parametrize("shape", [(2, 2), (3, 9), (2, 3, 4)])
def test_products_on_ties(shape):
    """Where the zero point of the second is 0, as of symmetric grids, XNNPACK has the product."""
    turned = (*shape[:-2], shape[-1], shape[-2])
    inputs = [keras.Input(shape, name="a"), keras.Input(turned, name="b")]
    model = keras.Model(inputs, inputs[0] @ inputs[1])
    x = networks.data(model, 400)
    q = networks.quantized(model, x, scales="power_of_two")
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    a, b = (np.rint(v / tensor.grid.scale) for v, tensor in zip(x, lite.inputs, strict=True))
    step = np.prod([tensor.grid.scale for tensor in lite.inputs]) / lite.outputs[0].grid.scale
    assert ((a @ b * step) % 1 == 0.5).sum() > 5


def test_conditions_are_attended_to_in_float(capsys):
    x = keras.Input((4, 3), name="x")
    model = keras.Model(x, L.MultiHeadAttention(1, 2, name="heads")(x, x, keras.ops.less(x, 0.5)))
    data = networks.data(model, 8)
    q = networks.quantized(model, data)
    assert "'heads' (MultiHeadAttention: integer only of sequences" in capsys.readouterr().out
    lite = kerasq.export_tflite(q)
    np.testing.assert_allclose(lite.predict(data), networks.run(q, data), atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: L.MultiHeadAttention(2, 4, dropout=0.5)(x, x),
        lambda x: L.GroupQueryAttention(4, 4, 2, dropout=0.5)(x, x),
        lambda x: L.Attention(dropout=0.5)([x, x]),
        lambda x: L.AdditiveAttention(dropout=0.5)([x, x]),
    ],
)
def test_probabilities_are_dropped_in_training_alone(make):
    networks.set_seed(0)
    x = keras.Input((6, 8), name="x")
    model = keras.Model(x, make(x))
    q = networks.quantized(model, data := networks.data(model, scale=1.0))
    want = networks.run(q, data)
    one, other = (np.asarray(q(data, training=True)) for _ in range(2))
    assert np.ptp([one, other], axis=0).max() > 0.1 * np.abs(want).max()
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))
