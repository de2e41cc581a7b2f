"""What a TimeDistributed holds, step by step: integer, on the weights that the steps share."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks
from tests.test_graphs import exact, images

L = keras.layers
FRAMES = images(16, (3, 6, 6, 2))


def network():
    """A network on each of three frames, and a layer on what it makes of them."""
    networks.set_seed(0)
    frame = keras.Input((6, 6, 2))
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv")(frame))
    inner = keras.Model(frame, L.GlobalAveragePooling2D()(L.ReLU(name="relu")(y)), name="inner")
    x = keras.Input((3, 6, 6, 2))
    return keras.Model(x, L.TimeDistributed(inner, name="frames")(x), name="outer")


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_a_network_on_each_step(batch_norm):
    model = network()
    q = exact(model, FRAMES, batch_norm=batch_norm)
    assert list(q.output_names) == ["frames"]
    assert {x.name for x in q.layers} >= {"conv", "conv_2", "conv_3"}
    # One kernel, one bias or BatchNormalization: as many values as the user's, but for ranges.
    assert sum("kernel" in v.path for v in q.trainable_variables) == 1
    lite = kerasq.export_tflite(q)
    assert [op.name for op in lite.ops].count("CONV_2D") == 3
    q.compile("sgd", "mse")
    q.fit(FRAMES, np.zeros((16, 3, 4)), verbose=0)
    np.testing.assert_array_equal(
        kerasq.export_tflite(q).predict(FRAMES), q.predict_on_batch(FRAMES)
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: L.Conv1D(3, 2, activation="elu"), (3, 5, 2)),
        (lambda: L.Dense(4, activation="swish"), (3, 2)),
        (lambda: L.TimeDistributed(L.MaxPooling1D(2)), (2, 3, 4, 2)),
        (lambda: L.Flatten(), (3, 5, 2)),
    ],
)
def test_a_layer_on_each_step(layer, shape):
    networks.set_seed(0)
    x = keras.Input(shape)
    model = keras.Model(x, L.TimeDistributed(layer())(L.Dense(2)(x)))
    exact(model, images(16, shape))


def test_overrides_name_what_is_inside():
    q = kerasq.quantize_model(network(), overrides={"conv": "w4a8"})
    assert q.get_layer("conv_3").bits.weight_bits == 4
    q = kerasq.quantize_model(network(), overrides={"frames": "w8a16"})
    assert {q.get_layer(x).output_bits for x in ("conv", "conv_2", "frames")} == {16}


def test_sequences_of_unknown_length_or_with_a_mask_stay_float(capsys):
    x = keras.Input((None, 6, 2))
    y = L.TimeDistributed(L.Conv1D(3, 2), name="unknown")(L.TimeDistributed(L.Dense(2))(x))
    kerasq.quantize_model(keras.Model(x, y))
    assert "'unknown' (TimeDistributed: " in capsys.readouterr().out
    words = keras.Input((4,))
    y = L.TimeDistributed(L.Dense(3, activation="elu"), name="masked")(
        L.Embedding(9, 3, mask_zero=True)(words)
    )
    kerasq.quantize_model(keras.Model(words, L.Dense(2)(L.Flatten()(y))))
    assert "'masked' (TimeDistributed: " in capsys.readouterr().out
