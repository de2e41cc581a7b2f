"""Integer tensors that layers compute on: pixels of uint8, counts, labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from tests import networks

L, ops = keras.layers, keras.ops
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3)).astype("uint8")


def exported(model, x, **options):
    """A quantized model, calibrated, and its file."""
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, x)
    return q, kerasq.export_tflite(q, **options)


def pixels(front):
    """A small network on uint8 images."""
    networks.set_seed(0)
    x = keras.Input((6, 6, 3), dtype="uint8", name="image")
    y = L.Flatten()(L.Conv2D(4, 3, activation="relu")(front(x)))
    return keras.Model(x, L.Dense(3)(y))


@pytest.mark.parametrize(
    "front",
    [
        L.Rescaling(1 / 127.5, offset=-1.0),
        lambda x: x / 255.0,
        lambda x: (ops.cast(x, "float32") - 127.5) / 127.5,
        lambda x: L.Rescaling(1 / 255)(L.ZeroPadding2D(1)(L.Cropping2D(1)(x))),
        L.Lambda(lambda x: tf.image.resize(tf.cast(x, tf.float32), (8, 8)) / 255.0),
    ],
    ids=["rescaling", "division", "cast", "moved", "tensorflow"],
)
def test_pixels(front):
    model = pixels(front)
    q, lite = exported(model, PIXELS)
    want = networks.run(model, PIXELS)
    np.testing.assert_allclose(networks.run(q, PIXELS), want, atol=0.05 * np.ptp(want))
    report = kerasq.compare(q, lite, x=PIXELS)
    assert report.exact == 1.0 and report.max_lsb == 0
    (end,) = lite.inputs
    assert (end.name, end.dtype) == ("image", np.int8) and lite.float_ops == []


@pytest.mark.parametrize("input_dtype", ["uint8", "float32"])
def test_types_of_the_input(input_dtype):
    q, lite = exported(pixels(L.Rescaling(1 / 255)), PIXELS, input_dtype=input_dtype)
    # Where others have floats, it takes what the model takes, and scales that itself.
    assert lite.inputs[0].dtype == np.uint8
    assert {op.name for op in lite.float_ops} == ({"CAST"} if input_dtype == "float32" else set())
    np.testing.assert_array_equal(lite.predict(PIXELS), q.predict(PIXELS, verbose=0))


def test_scaled_in_front_of_the_grid():
    counts = np.random.default_rng(0).poisson([1.0, 20.0, 400.0, 9000.0], (64, 4)).astype("int32")
    normalization = L.Normalization()
    normalization.adapt(counts.astype("float32"))
    x = keras.Input((4,), dtype="int32")
    model = keras.Model(x, L.Dense(2)(normalization(x)))
    _, lite = exported(model, counts)
    want = networks.run(model, counts)
    np.testing.assert_allclose(lite.predict(counts), want, atol=0.05 * np.ptp(want))
    (own,) = [end.preprocessing for end in lite.inputs]
    np.testing.assert_allclose(own(counts), normalization(counts), atol=1e-5)
    _, floats = exported(model, counts, input_dtype="float32")
    np.testing.assert_array_equal(floats.predict(counts), lite.predict(counts))


def test_what_reads_indices_keeps_them():
    x = keras.Input((5,), dtype="int32", name="words")
    both = L.Concatenate()([L.Flatten()(L.Embedding(9, 3)(x)), L.Rescaling(0.1)(x)])
    model = keras.Model(x, L.Dense(2)(both))
    words = np.random.default_rng(0).integers(0, 9, (32, 5)).astype("int32")
    q, lite = exported(model, words)
    assert [end.dtype for end in lite.inputs] == [np.int32]
    np.testing.assert_array_equal(lite.predict(words), networks.run(q, words))


def test_labels_that_are_computed_on():
    x = keras.Input((4,))
    scores = L.Dense(5)(x)
    model = keras.Model(x, L.Rescaling(0.25)(ops.argmax(scores, axis=-1, keepdims=True)))
    values = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    q, lite = exported(model, values)
    np.testing.assert_array_equal(lite.predict(values), networks.run(q, values))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * (x > 0.5),
        lambda x: L.Concatenate()([x > 0.5, x]),
        lambda x: L.Dense(3)(ops.logical_and(x > 0.1, x < 0.7)),
    ],
    ids=["mask", "beside", "weights"],
)
def test_conditions_are_0_and_1(function):
    x = keras.Input((6,))
    values = np.random.default_rng(0).uniform(0, 1, (32, 6)).astype("float32")
    model = keras.Model(x, function(x))
    q, lite = exported(model, values)
    np.testing.assert_array_equal(lite.predict(values), networks.run(q, values))
    off = np.abs(networks.run(q, values) - networks.run(model, values))
    # At the threshold a code falls on either side.
    assert np.quantile(off, 0.9) < 0.05


def test_layers_of_two_kinds_read_one_cast():
    x = keras.Input((4, 3))
    labels = ops.argmax(x, axis=1)
    model = keras.Model(x, [L.BatchNormalization()(labels), labels + x[:, 0], labels])
    values = np.random.default_rng(0).normal(size=(16, 4, 3)).astype("float32")
    q, lite = exported(model, values)
    assert len([op for op in lite.ops if op.name == "CAST"]) == 1
    for a, b in zip(lite.predict(values).values(), networks.run(q, values), strict=True):
        np.testing.assert_array_equal(a, b)


def test_conditions_that_a_layer_moves():
    x = keras.Input((4, 4, 3))
    moved = L.ZeroPadding2D(1)(x > 0.0)  # Keras says that it returns floats.
    model = keras.Model(x, [moved * L.ZeroPadding2D(1)(x), moved**2])
    values = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype("float32")
    q, lite = exported(model, values)
    found, want = lite.predict(values).values(), networks.run(q, values)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_array_equal(a, b)
    inner = want[1][:, 1:-1, 1:-1]
    assert np.mean(np.abs(inner - (values > 0.0)) < 0.01) > 0.97 and want[1].sum() == inner.sum()


@pytest.mark.skipif(not hasattr(ops, "isreal"), reason="Keras 3.10 has no such operation.")
def test_an_input_that_makes_no_difference():
    x = keras.Input((3,), name="x")
    _, lite = exported(keras.Model(x, ops.isreal(x)), np.ones((8, 3), "float32"))
    assert [(end.name, end.dtype) for end in lite.inputs] == [("x", np.int8)]


def test_outputs_that_are_tuples():
    x = keras.Input((4, 3))
    values = np.random.default_rng(0).normal(size=(16, 4, 3)).astype("float32")
    mean, variance = ops.moments(L.Dense(3)(x), axes=[-1])
    q, lite = exported(keras.Model(x, [mean, variance]), values)
    for a, b in zip(lite.predict(values).values(), networks.run(q, values), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_training_saving_and_loading(tmp_path):
    model = pixels(L.Rescaling(1 / 255))
    q = kerasq.quantize_model(model)
    q.compile("sgd", "mse")
    q.fit(PIXELS, np.zeros((32, 3)), verbose=0)
    q.save(tmp_path / "q.keras")
    again = kerasq.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(
        kerasq.export_tflite(again).predict(PIXELS), kerasq.export_tflite(q).predict(PIXELS)
    )


@pytest.mark.parametrize("kind", [L.Add, L.Multiply, L.Maximum])
def test_labels_that_a_float_layer_merges(kind):
    """Keras says that it returns floats, and returns integers."""
    x = keras.Input((4, 3))
    labels = keras.ops.argmax(x, axis=-1)
    merged = kind(name="merged")([labels, labels])
    model = keras.Model(x, L.Add(name="grid")([merged, merged]))
    data = np.random.default_rng(0).normal(size=(16, 4, 3)).astype("float32")
    q = kerasq.quantize_model(model, overrides={"merged": "float"})
    kerasq.calibrate(q, data)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))
    step = q.get_layer("grid").output_quantizer.grid().scale
    np.testing.assert_allclose(lite.predict(data), model.predict(data, verbose=0), atol=step)


def test_tensors_of_16_bits_are_computed_on_in_32():
    x = keras.Input((4,))
    half = ops.cast(ops.sin(x), "float16")
    model = keras.Model(x, L.Average()([L.Rescaling(0.5)(half), x]))
    values = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    q, lite = exported(model, values)
    np.testing.assert_array_equal(lite.predict(values), networks.run(q, values))
