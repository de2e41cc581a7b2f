"""A mask that is an argument is computed; one that only Keras sees is an error."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers
ops = keras.ops
STEPS = 12

# What is integer under a mask.
MASKED = {
    "GlobalAveragePooling1D": lambda x, mask: L.GlobalAveragePooling1D()(
        L.Dense(8, activation="relu")(x), mask=mask
    ),
    "Softmax": lambda x, mask: ops.sum(
        L.Softmax(axis=1)(L.Dense(1)(x), mask=mask[..., None]) * x, axis=1
    ),
    "attention_mask": lambda x, mask: L.Flatten()(
        L.MultiHeadAttention(2, 4)(x, x, attention_mask=mask[:, None, :])
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_as_arguments(name, capsys):
    networks.set_seed(0)
    inputs = [keras.Input((STEPS, 8), name="x"), keras.Input((STEPS,), name="mask")]
    mask = ops.cast(inputs[1], "bool")
    model = keras.Model(inputs, L.Dense(3, name="head")(MASKED[name](inputs[0], mask)))
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, STEPS, 48)
    x = [
        rng.normal(size=(48, STEPS, 8)).astype("float32"),
        (np.arange(STEPS) < lengths[:, None]).astype("float32"),
    ]
    q = kerasq.quantize_model(model)
    assert "Stay in float" not in capsys.readouterr().out
    kerasq.calibrate(q, [x])
    want, simulated = model.predict_on_batch(x), q.predict_on_batch(x)
    lite = kerasq.export_tflite(q)
    assert 10 * np.log10(np.mean(want**2) / np.mean((want - simulated) ** 2)) > 20
    assert lite.float_ops == []
    np.testing.assert_allclose(lite.predict(x), simulated, atol=1.01 * lite.outputs[0].grid.scale)


def test_no_mask_and_training_are_no_arguments_of_note():
    inner = keras.Input((STEPS, 8), name="x")
    y = L.GlobalAveragePooling1D(name="mean")(inner, mask=None)
    q = networks.quantized(keras.Model(inner, L.BatchNormalization()(y, training=False)))
    assert kerasq.export_tflite(q).float_ops == []


def test_a_product_under_a_mask_is_refused():
    indices = keras.Input((STEPS,), dtype="int32", name="x")
    y = L.Embedding(9, 4, mask_zero=True)(indices)
    with pytest.raises(ValueError, match=r"'product' \(Multiply\): reads a mask"):
        kerasq.quantize_model(keras.Model(indices, L.Multiply(name="product")([y, y])))


@pytest.mark.parametrize("batch", [1, 3])
def test_pooling_under_the_mask_of_an_embedding(batch):
    """Keras fills in the argument of a layer that has one, which so is in the file."""
    networks.set_seed(0)
    words = keras.Input((STEPS,), dtype="int32", name="words")
    y = L.Embedding(9, 4, mask_zero=True, name="embedding")(words)
    y = L.GlobalAveragePooling1D(name="mean")(L.Dense(4, activation="relu")(y))
    model = keras.Model(words, L.Dense(3, name="head")(y))
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, (48, STEPS)) * (np.arange(STEPS) < rng.integers(3, STEPS, (48, 1)))
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, batch_size=batch)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 25
