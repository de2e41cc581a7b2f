"""Poolings in parts."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers


@pytest.mark.parametrize(
    ("pool", "shape", "operator"),
    [
        (L.AveragePooling2D((4, 6), name="pool"), (4, 6, 3), "MEAN"),
        (L.AveragePooling2D((4, 6), strides=9, padding="same", name="pool"), (4, 6, 3), "MEAN"),
        (L.AveragePooling1D(5, name="pool"), (5, 3), "MEAN"),
        # Several windows, that padding makes; and one place alone.
        (L.AveragePooling2D(4, strides=1, padding="same", name="pool"), (4, 4, 3), None),
        (L.AveragePooling2D(1, name="pool"), (1, 1, 3), None),
        (L.AveragePooling2D(3, name="pool"), (4, 4, 3), None),
    ],
)
def test_an_average_of_whole_samples_has_a_range_of_its_own(pool, shape, operator):
    networks.set_seed(0)
    x = keras.Input(shape, name="x")
    model = keras.Model(x, L.Dense(2)(L.Flatten()(pool(L.Dense(4, activation="relu")(x)))))
    data = networks.data(model)
    q = networks.quantized(model, data)
    lite = kerasq.export_tflite(q, check=False)
    assert ("MEAN" in {op.name for op in lite.ops}) == (operator is not None)
    np.testing.assert_array_equal(networks.run(q, data), lite.predict(data))
    np.testing.assert_allclose(networks.run(q, data), networks.run(model, data), atol=0.1)
    if operator:
        (mean,) = [x for x in lite.tensors if x.name == "pool"]
        # That of averages: wider steps would be those of the values.
        averages = networks.run(keras.Model(model.input, model.get_layer("pool").output), data)
        assert mean.grid.high == pytest.approx(averages.max(), rel=1e-3)
