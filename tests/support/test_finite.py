import keras
import numpy as np
import pytest

import kerasq
from kerasq.support.finite import check_finite, not_finite

L = keras.layers


def dense():
    return keras.Sequential([keras.Input((4,)), L.Dense(3, name="first"), L.Dense(2, name="head")])


def spoil(layer, value):
    kernel = layer.kernel.numpy()
    kernel[0, 0] = value
    layer.kernel.assign(kernel)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named_at_every_stage(value):
    x = np.ones((8, 4), "float32")
    rule = r"must be finite numbers. Received: .*'head': kernel"
    model = dense()
    spoil(model.get_layer("head"), value)
    with pytest.raises(ValueError, match=rule):
        kerasq.quantize_model(model)
    q = kerasq.quantize_model(dense())
    kerasq.calibrate(q, x)
    spoil(q.get_layer("head").layer, value)
    with pytest.raises(ValueError, match=rule):
        kerasq.calibrate(q, x)
    with pytest.raises(ValueError, match=rule):
        kerasq.export_tflite(q)


@pytest.mark.parametrize("layers", [[], [L.Dense(3)]], ids=["alone", "folded"])
def test_a_variance_below_0_is_that_of_the_normalization(layers):
    norm = L.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((3,)), *layers, norm])
    norm.moving_variance.assign([1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match=r"not be below 0. Received: layer 'norm' with -1, whose"):
        kerasq.quantize_model(model)
    norm.moving_variance.assign([1.0, -1e-6, 1.0])  # Rounded: epsilon is more.
    kerasq.quantize_model(model)


def test_a_range_that_is_no_number_is_named():
    q = kerasq.quantize_model(dense())
    kerasq.calibrate(q, np.ones((8, 4), "float32"))
    q.get_layer("first").output_quantizer.range_max.assign(np.nan)
    with pytest.raises(ValueError, match="'first': range_max"):
        kerasq.export_tflite(q)


def test_integers_and_layers_without_weights():
    assert not_finite(L.ReLU()) == []
    check_finite(keras.Sequential([keras.Input((4,)), L.Dropout(0.5), L.Dense(2)]))
