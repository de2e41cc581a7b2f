"""Shared layers and calls that no output needs, through quantization and export."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers


def exported(model):
    """Whether simulation and file agree to the last bit."""
    q = networks.quantized(model)
    x = networks.data(q, 8)
    np.testing.assert_array_equal(
        kerasq.export_tflite(q, check=False).predict(x), networks.run(q, x)
    )
    return q


@pytest.mark.parametrize("folded_first", [True, False])
def test_a_batch_normalization_that_is_folded_in_one_place_only(folded_first):
    networks.set_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    norm = L.BatchNormalization(name="norm")
    a = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    calls = [
        lambda: norm(L.Conv2D(4, 3, padding="same", name="second")(a)),
        lambda: norm(L.MaxPooling2D(3, 1, padding="same", name="pool")(a)),
    ]
    ends = [call() for call in (calls if folded_first else reversed(calls))]
    exported(keras.Model(x, L.Flatten()(L.Add()(ends))))


def test_outputs_of_a_nested_model_that_nothing_reads():
    networks.set_seed(0)
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 3, name="conv")(x)
    dead = L.ReLU(name="dead")(y)
    inner = keras.Model(x, [L.BatchNormalization(name="norm")(y), dead], name="inner")
    image = keras.Input((8, 8, 3), name="image")
    q = exported(keras.Model(image, L.Flatten()(inner(image)[0])))
    assert "dead" not in [layer.name for layer in q.layers]


def test_the_call_farthest_from_the_output_holds_shared_weights():
    networks.set_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    shared = L.Conv2D(3, 3, padding="same", name="c")
    late = shared(L.ReLU()(L.Conv2D(3, 3, padding="same")(x)))
    early = L.ReLU()(shared(x))
    q = exported(keras.Model(x, L.Flatten()(L.Add()([late, early]))))
    assert q.get_layer("c_2").leader is None
    assert q.get_layer("c").leader is q.get_layer("c_2")


def test_calls_of_a_float_layer_are_compared_each_with_its_own():
    networks.set_seed(0)
    x = keras.Input((6,), name="x")
    shared = L.LayerNormalization(name="norm")
    first = shared(L.Dense(5, name="dense")(x))
    model = keras.Model(x, [L.Dense(3, name="head")(first), shared(first * 2.0 + 1.0)])
    q = networks.quantized(model)
    x = networks.data(q, 16)
    report = kerasq.compare(q, kerasq.export_tflite(q), x=x)
    # The second call is an output: its tensor was called as that of the first one.
    assert {x.name for x in report.layers} >= {"norm", "norm_2"}
    assert report.max_lsb <= 1 and report.max_error < 0.1
    assert all(layer.max_error < 0.1 for layer in report.layers)
