"""Models that return labels: ARG_MAX and ARG_MIN on codes, integers beside values."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.layers import ArgMax, ArgMin
from tests import networks

L, K = keras.layers, keras.ops


def heads():
    """Logits, and labels along several axes, one of them cut out of the logits."""
    networks.set_seed(0)
    x = keras.Input((6, 5, 3))
    y = L.Conv2D(4, 3, name="logits")(x)
    outputs = [
        y,
        K.expand_dims(K.argmax(y[..., 1:3], axis=-1), -1),
        K.argmin(y, axis=1, keepdims=True),
        ArgMax(2, output_dtype="int64", name="wide")(y),
    ]
    return keras.Model(x, outputs)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w2a3"])
def test_heads_of_labels(scheme, capsys):
    model = heads()
    x = np.random.default_rng(0).normal(size=(40, 6, 5, 3)).astype("float32")
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q)
    assert "float" not in capsys.readouterr().out and lite.float_ops == []
    names = [op.name for op in lite.ops]
    assert (names.count("ARG_MAX"), names.count("ARG_MIN")) == (2, 1)
    assert names.count("CAST") == (3 if scheme == "w8a16" else 0)
    logits, *labels = q.predict_on_batch(x)
    # In NumPy, the first of equal values.
    want = [logits[..., 1:3].argmax(-1)[..., None], logits.argmin(1)[:, None], logits.argmax(2)]
    found = [lite.predict(x)[name] for name in lite.output_names]
    np.testing.assert_array_equal(found[0], logits)
    for a, b, c, dtype in zip(want, labels, found[1:], ("int32", "int32", "int64"), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert b.dtype == c.dtype == dtype
    report = kerasq.compare(q, lite, x=x)
    assert (report.exact, report.argmax_agreement, report.max_lsb) == (1.0, 1.0, 0)
    assert {layer.dtype for layer in report.layers} >= {"int32", "int64"}


def classifier(**options):
    networks.set_seed(1)
    x = keras.Input((4,))
    return keras.Model(x, K.argmax(L.Dense(3, **options)(x), axis=-1))


def test_labels_are_compared_and_scored_as_labels(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    q = networks.quantized(classifier(), x)
    lite = kerasq.export_tflite(q)
    labels = networks.run(q, x)
    truth = np.where(np.arange(64) < 16, (labels + 1) % 3, labels)
    assert lite.evaluate((x, truth), ["accuracy"]) == {"accuracy": 0.75}
    # Another model's labels: each difference counts, whatever its size.
    q.save(tmp_path / "q.keras")
    other = kerasq.load_model(tmp_path / "q.keras")
    kernel, bias = other.layers[2].layer.weights
    kernel.assign(kernel[:, ::-1])
    bias.assign([0.0, 0.1, -0.1])
    agreement = float(np.mean(networks.run(other, x) == labels))
    report = kerasq.compare(other, lite, x=x)
    assert 0.0 < report.argmax_agreement == report.exact == agreement < 1.0
    assert report.max_lsb == np.abs(networks.run(other, x) - labels).max()


def test_of_equal_values_the_first_counts():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    model = classifier(name="logits")
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.repeat(np.float32([[1e-3], [1.0], [0.0], [0.0]]), 3, axis=1))
    q = networks.quantized(model, x)
    assert set(networks.run(q, x)) == set(kerasq.export_tflite(q).predict(x)) == {0}
    # Both zeros are one code.
    zeros = np.float32([[-0.0, 0.0], [0.0, -0.0]])
    assert ArgMax()(zeros).numpy().tolist() == ArgMin()(zeros).numpy().tolist() == [0, 0]


@pytest.mark.parametrize("axis", [None, 0, -3])
def test_labels_must_be_those_of_a_sample(axis):
    x = keras.Input((6, 4))
    model = keras.Model(x, K.argmax(L.Dense(3)(x), axis=axis, keepdims=True))
    with pytest.raises(ValueError, match=f"axis behind that of samples, has axis={axis}"):
        kerasq.quantize_model(model)


def test_labels_of_a_float_layer(capsys):
    x = keras.Input((8, 4))
    y = L.Dense(3, name="head")(L.LayerNormalization(name="norm")(L.Dense(4, name="before")(x)))
    labels = K.argmax(y, axis=-1)
    model = keras.Model(x, [labels, K.cast(labels + 1, "float32")])
    values = np.random.default_rng(0).normal(size=(40, 8, 4)).astype("float32")
    q = networks.quantized(model, values, overrides={"head": "float"})
    # What computes on labels is no float operator; what makes floats of them is, in the file.
    printed = capsys.readouterr().out
    assert "argmax" not in printed and "add" not in printed and "Cast" not in printed
    lite = kerasq.export_tflite(q)
    found = lite.predict(values)
    want = dict(zip(lite.output_names, networks.run(q, values), strict=True))
    for name in want:
        assert np.mean(found[name] == want[name]) > 0.99  # Sums in float hang on their order.
