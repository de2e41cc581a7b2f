"""What only a concatenation reads lies on its grid."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks
from tests.test_graphs import outputs

L = keras.layers


def conv(x, name, **options):
    return L.Conv2D(4, 1, name=name, **options)(x)


def image():
    networks.set_seed(0)
    return keras.Input((6, 6, 3), name="image")


def exported(model, x=None, **options):
    """The quantized model, its file, and the names of the file's operators."""
    q = networks.quantized(model, x, **options)
    lite = kerasq.export_tflite(q)
    return q, lite, [op.name for op in lite.ops]


def ranges(q, *names):
    """Which of the layers have one range, by numbers."""
    found = [id(q.get_layer(name).output_quantizer) for name in names]
    return [found.index(x) for x in found]


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_branches_behind_relus(target):
    x = image()
    pooled = L.MaxPooling2D(2, 1, padding="same")(conv(x, "c", activation="relu"))
    both = L.Concatenate(name="both")([conv(x, "a", activation="relu"), pooled])
    model = keras.Model(x, L.Dense(2, name="head")(L.Flatten()(both)))
    q, lite, names = exported(model, target=target)
    assert "QUANTIZE" not in names
    assert ranges(q, "a", "c", "both", "head") == [0, 0, 0, 3]
    low, high = q.get_layer("both").output_quantizer.range()
    # That of all values, as they are in float: what a calibration by minmax says.
    data = networks.data(model)
    inner = keras.Model(x, both)
    assert float(low) == 0.0 and float(high) == pytest.approx(networks.run(inner, data).max())
    np.testing.assert_array_equal(networks.run(q, data), lite.predict(data))


def test_a_relu_beside_what_has_none_keeps_its_own_grid():
    x = image()
    cut, plain = conv(x, "cut", activation="relu"), conv(x, "plain")
    model = keras.Model(x, conv(L.Concatenate(name="both")([cut, plain]), "head"))
    q, lite, names = exported(model)
    assert ranges(q, "cut", "plain", "both") == [0, 1, 1] and names.count("QUANTIZE") == 1
    data = networks.data(model)
    np.testing.assert_array_equal(networks.run(q, data), lite.predict(data))


@pytest.mark.parametrize("kind", ["reader", "output", "scheme", "frozen", "limit"])
def test_what_keeps_a_range_of_its_own(kind):
    x = image()
    limit = L.ReLU(6.0, name="relu") if kind == "limit" else L.ReLU(name="relu")
    a, b = limit(conv(x, "a")), conv(x, "b", activation="relu")
    both = L.Concatenate(name="both")([a, b])
    y = conv(both, "head")
    ends = [y, a] if kind == "output" else y
    if kind == "reader":
        ends = L.Concatenate(name="last")([y, conv(a, "other")])
    model = keras.Model(x, ends)
    model.get_layer("a").trainable = kind != "frozen"
    q, lite, _ = exported(model, overrides={"a": "w8a16"} if kind == "scheme" else None)
    # Two limits of ReLUs are no common one: then none of them can share.
    wanted = [0, 1, 2] if kind == "limit" else [0, 1, 1]
    assert ranges(q, "a", "b", "both") == wanted
    data = networks.data(model)
    predicted = keras.tree.flatten(networks.run(q, data))
    for mine, its in zip(predicted, outputs(lite, data), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_relu_behind_a_concatenation_is_its_own():
    x = image()
    both = L.ReLU(name="relu")(L.Concatenate(name="both")([conv(x, "a"), conv(x, "b")]))
    q, lite, _ = exported(keras.Model(x, conv(both, "head")))
    assert ranges(q, "a", "b", "both") == [0, 1, 2]
    data = networks.data(q)
    np.testing.assert_array_equal(networks.run(q, data), lite.predict(data))


def test_concatenations_of_concatenations_and_extremes():
    x = image()
    inner = L.Concatenate(name="inner")([conv(x, "a"), conv(x, "b")])
    most = L.Maximum(name="most")([L.Conv2D(8, 1, name="c")(x), inner])
    outer = L.Concatenate(name="outer")([most, conv(x, "d")])
    model = keras.Model(x, L.Conv2D(2, 1, name="head")(outer))
    q, lite, names = exported(model)
    assert ranges(q, "a", "b", "inner", "c", "most", "d", "outer") == [0] * 7
    assert names.count("QUANTIZE") == 0
    data = networks.data(model)
    np.testing.assert_array_equal(networks.run(q, data), lite.predict(data))


def test_one_range_is_trained_and_saved(tmp_path):
    x = image()
    both = L.Concatenate(name="both")([conv(x, "a"), L.Conv2D(2, 3, padding="same", name="b")(x)])
    model = keras.Model(x, L.Dense(1)(L.Flatten()(both)))
    data = networks.data(model, 32)
    q = kerasq.quantize_model(model)
    q.compile("sgd", "mse")
    # Never calibrated: the first batches set the range, of branches of other shapes.
    q.fit(data, np.zeros((32, 1)), epochs=3, verbose=0)
    low, high = map(float, q.get_layer("both").output_quantizer.range())
    values = networks.run(keras.Model(q.input, q.get_layer("both").output), data)
    assert values.min() == pytest.approx(low, rel=0.3)
    assert values.max() == pytest.approx(high, rel=0.3)
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    assert ranges(again, "a", "b", "both") == [0, 0, 0]
    lite = kerasq.export_tflite(again)
    np.testing.assert_array_equal(networks.run(q, data), lite.predict(data))


def test_what_learns_ranges_learns_one():
    x = image()
    both = L.Concatenate(name="both")([conv(x, "a"), conv(x, "b")])
    q = networks.quantized(keras.Model(x, conv(both, "head")), range_gradient="lsq")
    names = [v.path for v in q.trainable_variables if "range_" in v.path]
    assert sorted(names) == sorted({*names})
    assert sum("range_max" in name for name in names) == 2  # That of the head is the other one.
