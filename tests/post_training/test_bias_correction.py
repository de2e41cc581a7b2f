"""`correct_biases`: beside NumPy, and where it must help."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers


def copies(model):
    return [w.numpy().copy() for w in model.weights]


def float_data(model, count=256, mean=1.5):
    rng = np.random.default_rng(0)
    return rng.normal(mean, 1.0, (count, *model.input_shape[1:])).astype("float32")


@pytest.mark.parametrize("activation", [None, "relu"])
def test_one_layer_by_hand(activation):
    """Values of one sign: what rounding a weight moves does not cancel out."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((9,)), L.Dense(4, activation=activation, name="d")])
    x = float_data(model)
    q = networks.quantized(model, x, scheme="w4a8")
    weights = q.get_layer("d").integer_weights()
    codes = np.asarray(weights.codes) * np.asarray(weights.grid.scale)
    (grid,) = q.get_layer("d").input_grids()
    rounded = grid.numpy().dequantize(grid.numpy().quantize(x))
    kernel, bias = model.get_weights()
    wanted = (x @ kernel + bias - (rounded @ codes + bias)).mean(axis=0)
    report = kerasq.correct_biases(q, x)
    found = q.get_layer("d").bias.numpy() - bias
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # Biases are rounded, too.
    assert np.abs(found).max() > 0.02
    step = float(q.get_layer("d").grid().scale)
    np.testing.assert_allclose(report.shifts, [np.sqrt(np.mean(found**2)) / step], rtol=1e-3)
    # The float network is the one with the old bias: a second time would be once too often.
    with pytest.raises(ValueError, match=r"one that correct_biases has changed"):
        kerasq.correct_biases(q, x)
    np.testing.assert_array_equal(q.get_layer("d").bias.numpy() - bias, found)


@pytest.mark.parametrize(
    ("name", "batch_norm", "target"),
    [
        ("residual", "keep", "litert"),
        ("residual", "fold", "tflm"),
        ("mobile", "keep", "tflm"),
        ("mobile", "fold", "litert"),
        ("convolutions", "keep", "litert"),
    ],
)
def test_networks_come_closer_to_float(name, batch_norm, target):
    model = getattr(networks, name)()
    x = float_data(model)
    before = copies(model)
    q = networks.quantized(model, x, scheme="w4a8", batch_norm=batch_norm, target=target)
    own = networks.sqnr(model, q, x)
    kept = {v.path: v.numpy() for v in q.weights}
    report = kerasq.correct_biases(q, x)
    assert networks.sqnr(model, q, x) > own + 1.0
    changed = {path.split("/")[-1] for path, v in kept.items() if _value(q, path) != v.tobytes()}
    assert changed <= {"bias", "beta"} and changed
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert report.samples == 256 and "Means over 256 samples." in str(report)
    lite = kerasq.export_tflite(q)
    assert kerasq.compare(q, lite, x=x[:64]).exact == 1.0


def _value(model, path):
    (found,) = [v for v in model.weights if v.path == path]
    return found.numpy().tobytes()


def test_calls_of_a_shared_layer_have_one_bias():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((6,)), keras.Input((6,))
    dense = L.Dense(3, name="shared")
    model = keras.Model([a, b], L.Add()([dense(a), dense(b)]))
    rng = np.random.default_rng(0)
    x = [rng.normal(m, 1.0, (128, 6)).astype("float32") for m in (1.0, 2.0)]
    q = networks.quantized(model, x, scheme="w4a8")
    own = networks.sqnr(model, q, x)
    assert kerasq.correct_biases(q, x).layers == ("shared",)
    assert networks.sqnr(model, q, x) > own


def test_what_has_no_bias_is_named():
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(4, use_bias=False, name="none"), L.Dense(2, name="head")]
    )
    q = networks.quantized(model, scheme="w4a8")
    report = kerasq.correct_biases(q, networks.data(model))
    assert (report.layers, report.left) == (("head",), ("none",))
    assert "Without a bias: none." in str(report)


def test_bad_input_changes_nothing():
    model = networks.residual()
    q = networks.quantized(model, scheme="w4a8")
    before = copies(q)
    x = networks.data(model)
    with pytest.raises(ValueError, match=r"must be a quantized model"):
        kerasq.correct_biases(model, x)
    with pytest.raises(ValueError, match="at least one sample"):
        kerasq.correct_biases(q, [])
    with pytest.raises(ValueError, match="NaN"):
        kerasq.correct_biases(q, np.full_like(x, np.nan))
    with pytest.raises(ValueError, match="has seen no data"):
        kerasq.correct_biases(kerasq.quantize_model(model), x)
    for old, new in zip(before, q.weights, strict=True):
        np.testing.assert_array_equal(old, new)
