"""`correct_biases`: beside NumPy, and where it must help."""

import math

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
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((9,)), L.Dense(4, activation=activation, name="d")])
    x = float_data(model)
    q = networks.quantized(model, x, scheme="w4a8")
    weights = q.get_layer("d").integer_weights()
    codes = np.asarray(weights.codes) * np.asarray(weights.grid.scale)
    (grid,) = q.get_layer("d").input_grids()
    rounded = grid.numpy().dequantize(grid.numpy().quantize(x))
    kernel, bias = model.get_weights()
    y, own = x @ kernel + bias, rounded @ codes + bias
    counts = np.ones_like(y, bool)
    if activation:
        counts = (y > 0) | (own >= 0)
        y, own = np.maximum(y, 0), np.maximum(own, 0)
        assert 0.2 < counts.mean() < 0.9  # What is cut off does not count.
    wanted = (y - own).sum(axis=0) / counts.sum(axis=0)
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
    networks.set_seed(0)
    a, b = keras.Input((6,)), keras.Input((6,))
    dense = L.Dense(3, name="shared")
    model = keras.Model([a, b], L.Add()([dense(a), dense(b)]))
    rng = np.random.default_rng(0)
    x = [rng.normal(m, 1.0, (128, 6)).astype("float32") for m in (1.0, 2.0)]
    q = networks.quantized(model, x, scheme="w4a8")
    own = networks.sqnr(model, q, x)
    assert kerasq.correct_biases(q, x).layers == ("shared",)
    assert networks.sqnr(model, q, x) > own


def test_twins_have_one_bias():
    """Layers may be reached by their second call first."""
    networks.set_seed(0)
    a, b = keras.Input((4, 4, 1), name="a"), keras.Input((4, 4, 1), name="b")
    conv, dense = L.Conv2D(4, 3, activation="relu", name="conv"), L.Dense(4, name="dense")
    one, two = (dense(L.Flatten()(conv(x))) for x in (a, b))
    model = keras.Model([a, b], L.Dense(2, name="head")(one - two))
    x = networks.data(model, count=64)
    q = networks.quantized(model, x, scheme="w4a8")
    own = networks.sqnr(model, q, x)
    assert kerasq.correct_biases(q, x).layers == ("conv", "dense", "head")
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


def constant_network(build):
    """All channels in front of `build` are constant: their means are no matter of statistics."""
    networks.set_seed(1)
    image = keras.Input((6, 6, 4), name="image")
    x = L.BatchNormalization(name="norm")(L.Conv2D(4, 1, name="first")(image))
    model = networks.shake_norms(keras.Model(image, build(L.ReLU(4.0, name="relu")(x))))
    norm = model.get_layer("norm")
    norm.gamma.assign(np.zeros(4))
    norm.beta.assign([3.0, 0.7, 5.0, 1.9])
    return model


SHARED = L.Conv2D(4, 3, padding="same", name="shared")


@pytest.mark.parametrize(
    "build",
    [
        lambda x: L.Conv2D(5, 3, padding="same", name="last")(x),
        lambda x: L.Conv2D(6, 3, groups=2, strides=2, name="last")(x),
        lambda x: L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="last")(x),
        lambda x: L.Conv2DTranspose(5, 3, strides=2, padding="same", name="last")(x),
        lambda x: L.Dense(5, name="last")(L.Flatten()(L.ZeroPadding2D(1)(x))),
        lambda x: L.BatchNormalization(name="behind")(L.Conv2D(5, 3, name="last")(x)),
        lambda x: L.Add(name="sum")([SHARED(x), SHARED(L.ReLU(1.0)(x))]),
    ],
    ids=["padded", "groups", "depthwise", "transposed", "flatten", "norm", "twice"],
)
def test_without_data_as_with_data(build):
    """On values that are constant and have 16 bits, both find what rounding weights costs."""
    model = constant_network(build)
    changes = []
    for data in (None, float_data(model, count=4)):
        q = networks.quantized(model, float_data(model, count=4), scheme="w4a16")
        before = {v.path: v.numpy() for v in q.weights}
        options = {"input_range": (-3.0, 6.0)} if data is None else {}
        report = kerasq.correct_biases(q, data, **options)
        assert report.method == ("analytic" if data is None else "empirical")
        assert (report.samples == 0) == (data is None)
        assert ("Means from the statistics of Batch" in str(report)) == (data is None)
        (name,) = report.layers[1:]
        bias = q.get_layer(name).bias
        if (norm := q.get_layer(name).batch_norm) is not None:
            bias = norm.beta
        changes.append(bias.numpy() - before[bias.path])
    np.testing.assert_allclose(changes[0], changes[1], atol=2e-3)
    assert np.abs(changes[0]).max() > 0.02


def test_without_data_by_hand():
    """Behind a BatchNormalization and a ReLU: the expectation of the clipped normal."""
    networks.set_seed(0)
    x = keras.Input((6,), name="x")
    y = L.BatchNormalization(name="norm")(L.Dense(6, name="first")(x))
    model = networks.shake_norms(keras.Model(x, L.Dense(4, name="last")(L.ReLU(name="relu")(y))))
    q = kerasq.quantize_model(model, "w4a8")
    kerasq.calibrate_without_data(q, (-1.0, 3.0))
    first, last = q.get_layer("first"), q.get_layer("last")
    lost = []
    for layer in (first, last):
        weights = layer.integer_weights()
        rounded = np.asarray(weights.codes) * np.asarray(weights.grid.scale)
        lost.append(rounded - layer.folded_kernel().numpy())
    beta, gamma = (v.numpy().copy() for v in (first.batch_norm.beta, first.batch_norm.gamma))
    bias, deviation = last.bias.numpy().copy(), np.abs(gamma)
    a = beta / deviation
    below = np.array([math.erf(v / math.sqrt(2.0)) for v in a]) / 2.0 + 0.5
    mean = beta * below + deviation * np.exp(-(a**2) / 2.0) / math.sqrt(2.0 * math.pi)
    report = kerasq.correct_biases(q)
    assert report.layers == ("first", "last") and report.left == ()
    np.testing.assert_allclose(last.bias.numpy() - bias, -mean @ lost[1], atol=2e-4)
    found = first.batch_norm.beta.numpy() - beta
    # The input's mean is the middle of its grid, which holds 0 exactly, and so moves a little.
    np.testing.assert_allclose(found, -np.full(6, 1.0) @ lost[0], atol=2e-2 * np.abs(lost[0]).max())
    assert np.abs(found).max() > 0.02 and np.abs(last.bias.numpy() - bias).max() > 0.01


def test_without_data_it_must_help():
    """On inputs for which the statistics hold, as far as calls are independent."""
    networks.set_seed(0)
    x = keras.Input((8,), name="x")
    y = L.Dense(8, kernel_initializer="identity", use_bias=False, name="first")(x)
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm", epsilon=1e-6)(y))
    model = keras.Model(x, L.Dense(16, name="last")(y))
    model.get_layer("norm").beta.assign(np.linspace(0.5, 3.0, 8))
    model.get_layer("norm").moving_mean.assign(np.full(8, 1.5))
    inputs = float_data(model, count=2000)
    q = kerasq.quantize_model(model, "w4a8")
    kerasq.calibrate_without_data(q, (-4.0, 7.0), input_moments=(1.5, 1.0))
    y = model.predict_on_batch(inputs)
    before = y.mean(axis=0) - q.predict_on_batch(inputs).mean(axis=0)
    own = networks.sqnr(model, q, inputs)
    kerasq.correct_biases(q, input_moments=(1.5, 1.0))
    after = y.mean(axis=0) - q.predict_on_batch(inputs).mean(axis=0)
    assert networks.sqnr(model, q, inputs) > own + 3.0
    assert np.abs(after).max() < 0.2 * np.abs(before).max()


def test_without_data_what_is_refused():
    model = networks.residual()
    q = networks.quantized(model, scheme="w4a8")
    before = copies(q)
    with pytest.raises(ValueError, match=r"Received: \['steps'\] without `data`"):
        kerasq.correct_biases(q, steps=3)
    with pytest.raises(ValueError, match=r"Received: \['input_range'\] beside `data`"):
        kerasq.correct_biases(q, networks.data(model), input_range=(0, 1))
    with pytest.raises(ValueError, match="has seen no data"):
        kerasq.correct_biases(kerasq.quantize_model(model))
    with pytest.raises(
        ValueError, match=r"symmetric, of 16 bits or .* Received: None for input 'image'"
    ):
        kerasq.correct_biases(networks.quantized(model, scheme="w8a16"))
    with pytest.raises(ValueError, match="must hold a BatchNormalization that has seen data"):
        kerasq.correct_biases(networks.quantized(networks.mlp()))
    for old, new in zip(before, q.weights, strict=True):
        np.testing.assert_array_equal(old, new)
