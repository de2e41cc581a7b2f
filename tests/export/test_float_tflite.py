import keras
import numpy as np
import pytest

import kerasq
from tests import networks


@pytest.mark.parametrize("make", [networks.residual, networks.two_by_two])
def test_it_computes_what_the_model_does(make, tmp_path):
    model = make()
    x = networks.samples(model, 5)
    lite = kerasq.export_float_tflite(model, tmp_path / "m.tflite", batch_size=2)
    assert (tmp_path / "m.tflite").read_bytes() == lite.content
    assert {tensor.type for tensor in (*lite.inputs, *lite.outputs)} == {"float32"}
    assert lite.inputs[0].shape[0] == 2
    assert lite.input_names == [tensor.name for tensor in model.inputs]
    found = lite.predict(x)
    if isinstance(found, dict):  # In the order of the model.
        assert list(found) == lite.output_names == model.output_names
        found = list(found.values())
    expected = keras.tree.flatten(networks.run(model, keras.tree.pack_sequence_as(model.input, x)))
    for y, z in zip(keras.tree.flatten(found), expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-5)


def test_weights_take_the_bytes_of_their_type():
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512), keras.layers.Dense(64)])
    x = np.random.default_rng(0).normal(size=(4, 64)).astype("float32")
    expected = networks.run(model, x)
    errors = []
    for weights, size in (("float32", 4), ("float16", 2), ("int8", 1)):
        lite = kerasq.export_float_tflite(model, weights=weights)
        count = 2 * 64 * 512  # Biases of 0 are left out.
        assert size * count < len(lite.content) < size * count + 10_000
        errors.append(np.abs(lite.predict(x) - expected).max())
    assert errors[0] < errors[1] < errors[2] < 0.2


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match=r"one of \['float32', 'float16', 'int8'\].*'int4'"):
        kerasq.export_float_tflite(networks.mlp(), weights="int4")


def test_samples_of_unknown_shape_are_refused():
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="shape of a sample must be known"):
        kerasq.export_float_tflite(model)
