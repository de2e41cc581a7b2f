"""`retarget`: the same weights and ranges on another target's kernels."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.calibration.samples import samples_of
from tests import networks

pytest.importorskip("tflite_micro")
L = keras.layers


@pytest.mark.parametrize(
    ("make", "scheme"),
    [
        (networks.mobile, "w8a8"),
        (networks.mobile, "w4a8"),
        (networks.residual, "w8a16"),
        (networks.two_by_two, "w8a8"),
        (networks.two_by_two, "w4a8"),
    ],
)
def test_there_and_back(make, scheme):
    model = make()
    x = networks.data(model, 32)
    q = networks.quantized(model, x, scheme=scheme)
    micro = kerasq.retarget(q, "tflm")
    for a, b in zip(micro.get_weights(), q.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert samples_of(micro) is samples_of(q)
    assert micro.dtype_policy.name == q.dtype_policy.name
    lite = kerasq.export_tflite(micro)
    assert lite.target == "tflm" and kerasq.compare(micro, lite, x=x).exact == 1.0
    # As if it had been quantized for it.
    fresh = networks.quantized(model, x, scheme=scheme, target="tflm")
    assert kerasq.export_tflite(fresh).content == lite.content
    again = kerasq.export_tflite(kerasq.retarget(micro, "litert"))
    assert again.target == "litert" and again.content == kerasq.export_tflite(q).content


def test_steps_that_share_a_range_share_one_there():
    networks.set_seed(0)
    x = keras.Input((3, 2), name="x")
    model = keras.Model(x, L.SimpleRNN(2, return_sequences=True, name="r")(x))
    data = networks.data(model, 32)
    q = networks.quantized(model, data)
    micro = kerasq.retarget(q, "tflm")
    assert len(micro.weights) == len(q.weights)
    fresh = networks.quantized(model, data, target="tflm")
    want = networks.run(fresh, data)
    np.testing.assert_array_equal(networks.run(micro, data), want)
    np.testing.assert_array_equal(kerasq.export_tflite(micro).predict(data), want)


def test_a_trained_model_trains_on():
    model = networks.residual()
    x = networks.data(model, 16)
    q = networks.quantized(model, x)
    q.compile("sgd", "sparse_categorical_crossentropy")
    q.fit(x, np.zeros(16), verbose=0)
    q.get_layer("branch").trainable = False
    micro = kerasq.retarget(q, "tflm")
    assert [v.path for v in micro.trainable_variables] == [v.path for v in q.trainable_variables]
    micro.compile("sgd", "sparse_categorical_crossentropy")
    micro.fit(x, np.zeros(16), verbose=0)
    assert kerasq.compare(micro, kerasq.export_tflite(micro), x=x).exact == 1.0


def test_layers_that_the_target_has_no_kernel_of_are_named():
    x = keras.Input((4,))
    model = keras.Model(x, L.Activation("gelu", name="curve")(L.Dense(3, name="head")(x)))
    q = networks.quantized(model, scheme="w8a16")
    wanted = r"target 'tflm', which has none of 'curve' \(GATHER on int16\). Quantize"
    with pytest.raises(ValueError, match=wanted):
        kerasq.retarget(q, "tflm")
    x = keras.Input((3, 2))
    fused = networks.quantized(keras.Model(x, L.LSTM(2, name="memory")(x)), recurrence="fused")
    wanted = r"none of 'memory' \(UNIDIR.* on int8\).*recurrence=\"unrolled\" for an LSTM"
    with pytest.raises(ValueError, match=wanted):
        kerasq.retarget(fused, "ethos-u")
    with pytest.raises(ValueError, match=r"must be a quantized model"):
        kerasq.retarget(model, "tflm")
    with pytest.raises(ValueError, match=r"`target` must be one of"):
        kerasq.retarget(q, "esp32")


def test_an_lstm_as_one_operator():
    x = keras.Input((3, 2))
    model = keras.Model(x, L.LSTM(2, name="memory")(x))
    data = networks.data(model, 32)
    micro = kerasq.retarget(networks.quantized(model, data, recurrence="fused"), "tflm")
    lite = kerasq.export_tflite(micro)
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in [op.name for op in lite.ops]
    np.testing.assert_array_equal(lite.predict(data), networks.run(micro, data))


def test_layers_that_are_called_twice():
    x = keras.Input((4,))
    dense = L.Dense(4, name="twice")
    model = keras.Model(x, dense(L.ReLU()(dense(x))))
    data = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    micro = kerasq.retarget(networks.quantized(model, data), "tflm")
    assert kerasq.compare(micro, kerasq.export_tflite(micro), x=data).exact == 1.0
    assert len(micro.trainable_variables) == len(kerasq.quantize_model(model).trainable_variables)


@pytest.mark.parametrize("to", ["tflm", "ethos-u"])
def test_ranges_that_layers_share(to):
    x = keras.Input((3, 4))
    steps = L.SimpleRNN(4, return_sequences=True, name="steps")(x)
    both = L.Concatenate(name="both")([L.Dense(2, name="a")(x), L.Dense(3, name="b")(x), steps])
    model = keras.Model(x, L.Dense(2, name="head")(both))
    data = networks.data(model, 32)
    keras.utils.clear_session()  # It counts the names that Keras makes.
    q = networks.quantized(model, data)
    moved = kerasq.retarget(q, to)
    ranges = [moved.get_layer(name).output_quantizer for name in ("a", "b", "both")]
    assert ranges[0] is ranges[1] is ranges[2]
    content = kerasq.export_tflite(moved).content
    keras.utils.clear_session()
    fresh = networks.quantized(model, data, target=to)
    assert content == kerasq.export_tflite(fresh).content
    again = kerasq.export_tflite(kerasq.retarget(moved, "litert"))
    assert again.content == kerasq.export_tflite(q).content
