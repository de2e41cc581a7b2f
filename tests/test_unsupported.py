"""What has no integer kernel stays float and is named; an error is what a file cannot have."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from tests import networks

L = keras.layers
ops = keras.ops


def layers_of(ops):
    return {op.outputs[0].split("/")[0] for op in ops}


def sequence(shape, *layers):
    return keras.Sequential([keras.Input(shape, name="x"), *layers])


@keras.saving.register_keras_serializable("test_unsupported")
class Summed(L.Layer):
    """What no symbolic input runs through, and TFLiteConverter takes."""

    def call(self, x):
        return tf.math.cumsum(tf.convert_to_tensor(x), axis=1)


@keras.saving.register_keras_serializable("test_unsupported")
def cumulative(x):
    return ops.cumsum(x, axis=-1)


def test_what_has_no_kernel_stays_float_and_is_named(capsys):
    model = sequence(
        (6, 6, 2),
        L.Conv2D(4, 3, activation=cumulative, name="own"),
        L.EinsumDense("abcd,bde->abce", (4, 4, 3), name="rows"),
        L.Conv2D(4, 3, name="fine"),
        L.GroupNormalization(2, name="norm"),
        Summed(name="summed"),
        L.GlobalAveragePooling2D(name="mean"),
    )
    x = networks.data(model, 40)
    q = networks.quantized(model, x)
    printed = capsys.readouterr().out
    assert "Stay in float, for want of an integer kernel: 'own' (keras.ops, Cumsum); " in printed
    assert "'rows' (EinsumDense: integer only of sums over the whole of some axes); " in printed
    assert "'summed' (Summed: cannot be traced: " in printed
    assert "fine" not in printed and "norm" not in printed
    lite = kerasq.export_tflite(q, check=False)
    floats = layers_of(lite.float_ops)
    assert floats == {"own", "rows", "summed"}
    assert [op.name for op in lite.ops].count("CONV_2D") == 2
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 25


class Gate(L.Layer):
    """Layers of its own, which Keras builds at the first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = L.Dense(2, "relu")

    def build(self, shape):
        self.second = L.Dense(shape[-1], "sigmoid")

    def call(self, x, other=None):
        return x * self.second(self.first(x if other is None else other))


class Shaped(Gate):
    """One whose `call` Keras does not run to know the shape of what it returns."""

    def compute_output_shape(self, x_shape, other_shape=None):
        return x_shape


@pytest.mark.parametrize("kind", [Gate, Shaped])
def test_layers_in_a_layer_that_stays_float(kind):
    x = keras.Input((3, 4))
    y, gate = L.Dense(4)(x), kind(name="gate")
    model = keras.Model(x, L.Dense(2)(gate(gate(y), other=y)))
    x = networks.data(model)
    networks.run(model, x)
    q = networks.quantized(model, x, overrides={"gate": "float"})
    lite = kerasq.export_tflite(q, check=False)
    assert layers_of(lite.float_ops) == {"gate", "gate_2"}
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    for a, b in zip(q.get_layer("gate").get_weights(), gate.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_spectrogram_stays_float():
    """Its file has complex tensors."""
    mel = L.MelSpectrogram(64, 32, sampling_rate=800, num_mel_bins=8, min_freq=20, name="mel")
    model = sequence((256,), mel, L.Permute((2, 1)), L.Conv1D(4, 3, name="conv"))
    q = networks.quantized(model, overrides={"x": "float"})
    lite = kerasq.export_tflite(q, check=False)
    assert "RFFT2D" in [op.name for op in lite.float_ops]
    assert "conv" not in layers_of(lite.float_ops)
    x = networks.data(model)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


def test_a_layer_as_an_activation():
    model = sequence((5,), L.Dense(4, activation=L.LeakyReLU(0.3), name="leaky"))
    lite = kerasq.export_tflite(networks.quantized(model))
    assert [op.name for op in lite.ops] == ["FULLY_CONNECTED", "LEAKY_RELU"]
    model = sequence((5,), L.Dense(4, activation=L.PReLU("ones"), name="sloped"), L.Dense(2))
    lite = kerasq.export_tflite(networks.quantized(model))
    assert not lite.float_ops


@pytest.mark.parametrize("key", ["recurrent", L.LSTM])
def test_integers_that_there_are_none_of(key):
    model = sequence(
        (5, 4), L.LSTM(3, activation="softmax", name="recurrent"), L.Dense(2, name="head")
    )
    text = r"have an integer kernel. Received: .*, that is 'recurrent' \(LSTM: .*\). Leave it out"
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(model, overrides={key: "w8a8"})
    # A pattern is meant for what it can be meant for.
    q = kerasq.quantize_model(model, overrides={"*e*": "w4a8"})
    assert q.get_layer("head").scheme == "w4a8" and isinstance(q.get_layer("recurrent"), L.LSTM)


def test_what_no_file_can_have_is_named(capsys):
    x = keras.Input((8, 8, 2), name="x")
    y = L.UpSampling2D(interpolation="bicubic", name="cubic")(x)
    y = L.Conv2D(4, 3, name="fine")(y)
    y = L.SpectralNormalization(L.Conv2D(4, 3), name="spectral")(y)
    y = ops.flip(L.Dense(2, dtype="float64", name="wide")(y), axis=0)
    with pytest.raises(ValueError, match="Every layer must run in a file") as error:
        kerasq.quantize_model(keras.Model(x, [x, y]), overrides={"*": "float", "fine": "w8a8"})
    lines = re.sub(r"'flip\w*'", "'flip'", str(error.value)).split("\n")[1:]
    assert [line.strip() for line in lines] == [
        "'cubic' (UpSampling2D): TensorFlow's ResizeBicubic is no operator of LiteRT; replace it, "
        "or leave it in front of the model",
        "'wide' (Dense): needs dtype='float32', has 'float64'; build it with that",
        "'flip' (Flip): needs to keep the first axis, samples; do it before or behind the model",
        "input 'x': is an output of the model as well; leave that output out",
    ]
    assert capsys.readouterr().out == ""


def test_integers_that_no_file_computes_are_left_in_front():
    x = keras.Input((1,), dtype="int64")
    y = L.Flatten()(L.Embedding(9, 2)(L.Hashing(9, name="hash")(x)))
    text = (
        r"'hash' \(Hashing\): .* no operator of LiteRT; replace it, or leave it in front of the m"
    )
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(keras.Model(x, L.Dense(3)(y)))


def test_products_of_six_axes_are_in_no_file():
    x = keras.Input((1, 2, 2, 3, 4), name="x")
    y = x @ ops.swapaxes(x, -1, -2)
    with pytest.raises(ValueError, match=r"(?s)must run in a file.*is no operator of LiteRT"):
        kerasq.quantize_model(keras.Model(x, L.Dense(2)(y)))


@pytest.mark.parametrize(
    ("kind", "text"),
    [("matmul", "needs to keep the first axis"), ("dot", "Dimensions must be equal")],
)
def test_sums_over_samples_are_named(kind, text):
    x = keras.Input((4,))
    y = L.Dense(1)(x)  # A product of y and itself is one for a single sample.
    z = y @ y if kind == "matmul" else ops.dot(y, y)
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(keras.Model(x, z))


def test_slices_of_all_samples_keep_them():
    def slices(x):
        whole = [tf.nn.relu(x)[:, 0], tf.slice(x, [0, 1, 0], [-1, 1, 3])[:, 0], x[0::1, 2]]
        return tf.concat([*whole, tf.squeeze(x[:, 3:], 1)], -1)

    model = sequence((4, 3), L.Lambda(slices))
    x = networks.data(model)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q)
    assert not lite.float_ops
    want = np.concatenate([np.maximum(x[:, 0], 0.0), x[:, 1], x[:, 2], x[:, 3]], -1)
    np.testing.assert_allclose(lite.predict(x), want, atol=0.02)
    for part in (lambda x: tf.nn.relu(x)[1:], lambda x: tf.nn.relu(x)[::-1]):
        with pytest.raises(ValueError, match="needs to keep the first axis"):
            kerasq.quantize_model(sequence((4, 3), L.Lambda(part)))


def test_a_layer_that_does_not_fit_is_tried_in_float():
    x = keras.Input((1, 1, 5, 1))
    y, _ = L.MultiHeadAttention(1, 1, name="m")(x, x, return_attention_scores=True)
    model = keras.Model(x, y)
    with pytest.raises(ValueError, match=r"'m' \(MultiHeadAttention\): LiteRT does not run what"):
        kerasq.quantize_model(model)


def test_what_the_converter_writes_and_litert_does_not_run_is_named():
    model = sequence(
        (2, 8, 8),
        L.Dense(8),
        L.Conv2D(3, 2, data_format="channels_first", dilation_rate=(1, 2), name="c"),
    )
    with pytest.raises(ValueError, match=r"'c' \(Conv2D\): LiteRT does not run what becomes of it"):
        kerasq.quantize_model(model)


def test_what_cannot_be_converted_is_named():
    @keras.saving.register_keras_serializable("test_unsupported")
    class Broken(L.Layer):
        def call(self, x):
            return ops.convert_to_tensor(x.numpy())

        def compute_output_shape(self, shape):
            return shape

    model = sequence((3,), Broken(name="broken"), L.Dense(2))
    with pytest.raises(ValueError, match=r"'broken' \(Broken\): cannot be converted: .*numpy"):
        kerasq.quantize_model(model)


def test_weights_that_would_broadcast_are_refused():
    a, b = keras.Input((5,)), keras.Input((1,))
    norm = L.Normalization(name="norm", mean=None)
    norm.build((None, 5))
    model = keras.Model([a, b], [norm(a), norm(b)])
    with pytest.raises(ValueError, match=r"as many channels .* 'norm' of 5 called on 1"):
        kerasq.quantize_model(model)


def test_constants_that_would_broadcast_stay_float(capsys):
    a, b = keras.Input((5,)), keras.Input((1,))
    scaling = L.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0], name="scaling")
    model = keras.Model([a, b], [scaling(a), scaling(b)])
    q = kerasq.quantize_model(model)
    assert "Stay in float" in capsys.readouterr().out
    data = [np.ones((8, 5), "float32"), np.ones((8, 1), "float32")]
    kerasq.calibrate(q, data)
    found = kerasq.export_tflite(q).predict(data)
    for y in found.values() if isinstance(found, dict) else found:
        np.testing.assert_allclose(y, np.ones((8, 1)) * [1, 2, 3, 4, 5], atol=0.05)
