"""Normalizations as integers: against float64, against the interpreters, and in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.wrappers import QuantizeWrapper
from tests import networks

L = keras.layers

# By name: the layer, and the shape of a sample.
LAYERS = {
    "layer": (lambda: L.LayerNormalization(), (5, 12)),
    "vector": (lambda: L.LayerNormalization(), (12,)),
    "no_center": (lambda: L.LayerNormalization(center=False), (5, 12)),
    "no_scale": (lambda: L.LayerNormalization(scale=False), (5, 12)),
    "plain": (lambda: L.LayerNormalization(center=False, scale=False), (5, 12)),
    "axes": (lambda: L.LayerNormalization(axis=[1, 2, 3]), (3, 4, 5)),
    "first_axis": (lambda: L.LayerNormalization(axis=1), (6, 3, 4)),
    "outer_axes": (lambda: L.LayerNormalization(axis=(1, 3)), (3, 4, 5)),
    "rms_scaling": (lambda: L.LayerNormalization(rms_scaling=True), (5, 12)),
    "rms": (lambda: L.RMSNormalization(), (5, 12)),
    "rms_axes": (lambda: L.RMSNormalization(axis=[1, 2]), (5, 12)),
    "group": (lambda: L.GroupNormalization(4), (3, 4, 8)),
    "instance": (lambda: L.GroupNormalization(-1), (3, 4, 8)),
    "one_group": (lambda: L.GroupNormalization(1), (6, 8)),
    "channels_first": (lambda: L.GroupNormalization(2, axis=1), (8, 3, 4)),
    "group_of_vector": (lambda: L.GroupNormalization(4), (16,)),
    "group_plain": (lambda: L.GroupNormalization(4, center=False, scale=False), (3, 4, 8)),
    "unit": (lambda: L.UnitNormalization(), (5, 12)),
    "unit_axes": (lambda: L.UnitNormalization(axis=[1, 3]), (3, 4, 5)),
    "unit_long": (lambda: L.UnitNormalization(axis=[1, 3]), (8, 2, 8)),
}


def network(make, shape):
    """The layer alone, with weights that tell channels apart."""
    networks.set_seed(0)
    x = keras.Input(shape, name="x")
    model = keras.Model(x, make()(x))
    rng = np.random.default_rng(0)
    for i, weight in enumerate(model.weights):
        weight.assign(rng.normal(1.0 - i, 0.3, weight.shape))
    return model


def spread(shape, count=24):
    """Samples whose deviations are up to a factor of 100 apart, and their means far from 0."""
    rng = np.random.default_rng(1)
    size = 10.0 ** np.linspace(-2.0, 0.0, count).reshape(-1, *(1,) * len(shape))
    x = rng.normal(0.0, 0.25, (count, *shape))
    return (size * (x + rng.uniform(-3.0, 3.0, size.shape))).astype(np.float32)


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("name", LAYERS)
def test_file_and_simulation_agree(name, target):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    make, shape = LAYERS[name]
    model, x = network(make, shape), spread(shape)
    q = networks.quantized(model, x, target=target)
    assert all(y.dtype == "float32" for y in q.outputs)
    lite = kerasq.export_tflite(q, check=False)
    assert "Integer only" in str(lite)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


@pytest.mark.parametrize("name", LAYERS)
def test_as_the_float_layer(name):
    model = network(*LAYERS[name])
    x = np.random.default_rng(0).normal(0.5, 1.0, (32, *LAYERS[name][1])).astype(np.float32)
    assert networks.sqnr(model, networks.quantized(model, x), x) > 28


def two_sizes(layer):
    """Images of 30 and 36 pixels, whose roots are near the same power of two."""
    x = keras.Input((5, 6, 4), name="x")
    large = keras.ops.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)])
    model = keras.Model(x, [layer(x), layer(large)])
    return model, np.random.default_rng(0).normal(0.0, 1.0, (16, 5, 6, 4)).astype("f")


def assert_close(model, q, data):
    """Simulation and file are equal, and close to the float model."""
    lite = kerasq.export_tflite(q, check=False)
    want, simulated = networks.run(model, data), networks.run(q, data)
    for a, b, c in zip(want, simulated, lite.predict(data).values(), strict=True):
        np.testing.assert_array_equal(b, c)
        assert np.square(a - b).sum() < 1e-3 * np.square(a).sum()


LAYERS_OF_IMAGES = {
    "group": (L.GroupNormalization, {"groups": 2}),
    "group, no scale": (L.GroupNormalization, {"groups": 2, "scale": False}),
    "group, alone": (L.GroupNormalization, {"groups": 2, "center": False, "scale": False}),
    "layer": (L.LayerNormalization, {"axis": [1, 2], "center": False, "scale": False}),
}


@pytest.mark.parametrize("name", LAYERS_OF_IMAGES)
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_one_layer_on_images_of_two_sizes(name, granularity, capsys):
    """Whose sums have units of their own, and epsilon another value in them."""
    make, options = LAYERS_OF_IMAGES[name]
    layer = make(name="norm", epsilon=0.1, **options)
    model, data = two_sizes(layer)
    model.set_weights([np.linspace(0.5, 2.0, len(w)) for w in model.get_weights()])
    q = networks.quantized(model, data, granularity=granularity)
    said = "Train apart, a copy for each call: weights of 'norm'."
    # One range for all channels is that of the gains times the root of a size.
    is_apart = granularity == "per_tensor" and bool(layer.trainable_weights)
    assert (said in capsys.readouterr().out) == is_apart
    assert_close(model, q, data)


def test_sizes_train_one_weight(tmp_path):
    """As of heads that are shared by all levels of a pyramid."""
    model, data = two_sizes(L.GroupNormalization(2, name="norm"))
    q = networks.quantized(model, data)
    trained = [w for w in q.trainable_variables if w.path.endswith(("kernel", "bias"))]
    assert [w.path for w in trained] == ["norm_scaled/kernel", "norm_scaled/bias"]
    q.compile(keras.optimizers.SGD(0.1), "mse")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    for x in (q, model):
        x.fit(data, networks.run(model, data), batch_size=16, epochs=3, verbose=0)
        x.fit(data, [0.5 * y for y in networks.run(model, data)], batch_size=16, verbose=0)
    for a, b in zip(trained, model.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2)
    assert abs(trained[0].numpy() - 1.0).max() > 0.02
    kerasq.calibrate(q, data)
    assert_close(model, q, data)
    q.save(tmp_path / "q.keras")
    assert_close(model, keras.models.load_model(tmp_path / "q.keras"), data)
    assert_close(model, kerasq.retarget(q, "litert-x86-64"), data)


ROWS = 40


def codes(kind, n):
    """Rows of int8 codes, as the layer may read them."""
    rng = np.random.default_rng(n)
    size, _, value = kind.partition("_")
    x = np.full((ROWS, n), 7.0)
    match size:
        case "deviation":
            x = rng.normal(0.0, float(value), (ROWS, n))
        case "far":
            x = rng.normal(100.0, float(value), (ROWS, n))
        case "outlier":
            x = rng.normal(0.0, 2.0, (ROWS, n))
            x[:, 3] = 127.0
        case "two":
            x = rng.choice([-128.0, 127.0], (ROWS, n))
        case "least":
            x[np.arange(ROWS), rng.integers(0, n, ROWS)] += 1.0
    return np.clip(np.round(x), -128, 127)


KINDS = ["deviation_0.5", "deviation_1", "deviation_10", "deviation_60", "far_1", "far_8"]
KINDS += ["outlier", "two", "constant", "least"]
# A thirtieth of the largest deviation or less, which the tables of an NPU do not tell apart.
SMALL = ("deviation_0.5", "deviation_1", "far_1", "least")


def exact(layer, x):
    """The layer in float64."""
    x = x.astype(np.float64)
    weights = {w.name: np.asarray(w, np.float64) for w in layer.weights}
    shift, size = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    if isinstance(layer, L.RMSNormalization):
        shift, size = 0.0, np.square(x).mean(-1, keepdims=True)
    y = (x - shift) / np.sqrt(size + layer.epsilon)
    return y * weights.get("gamma", weights.get("scale")) + weights.get("beta", 0.0)


@pytest.mark.parametrize("target", ["litert", "tflm", "ethos-u"])
@pytest.mark.parametrize(
    ("make", "n", "step"),
    [
        (lambda: L.LayerNormalization(epsilon=1e-6), 24, 0.05),
        (lambda: L.LayerNormalization(epsilon=1e-12), 384, 3.0),
        (lambda: L.LayerNormalization(), 384, 0.002),  # an epsilon beside which variances are small
        (lambda: L.RMSNormalization(epsilon=1e-6), 384, 0.05),
    ],
)
def test_outputs_are_within_one_step_of_the_real_function(make, n, step, target):
    model = network(make, (1, n))
    x = np.concatenate([codes(kind, n) for kind in KINDS])[:, None].astype(np.float32) * step
    q = networks.quantized(model, x, target=target)
    # So that the input's grid has the codes themselves.
    assert q.layers[1].grid().numpy().scale == pytest.approx(step, rel=1e-6)
    wanted, found = exact(model.layers[-1], x), networks.run(q, x)
    error = np.abs(found - wanted).max((1, 2)) / q.layers[-1].grid().numpy().scale
    by_kind = dict(zip(KINDS, error.reshape(-1, ROWS).max(1), strict=True))
    told_apart = {k: x for k, x in by_kind.items() if target != "ethos-u" or k not in SMALL}
    assert max(told_apart.values()) < 1.0, by_kind
    # Nearly all of it is the rounding to 8 bits.
    assert by_kind["deviation_10"] < 0.55, by_kind


def test_a_constant_row_gives_beta():
    model = network(lambda: L.LayerNormalization(epsilon=1e-12), (5, 12))
    q = networks.quantized(model, spread((5, 12)))
    y = networks.run(q, np.full((1, 5, 12), 0.4, np.float32))
    beta = np.asarray(model.layers[-1].beta)
    step = q.layers[-1].grid().numpy().scale
    np.testing.assert_allclose(y[0], np.tile(beta, (5, 1)), atol=0.51 * step)


def test_int16_ends():
    """At 16 bits nothing is rounded to 8; the error is that of differences and lengths."""
    model = network(lambda: L.LayerNormalization(epsilon=1e-6), (1, 48))
    rng = np.random.default_rng(0)
    x = rng.normal(rng.uniform(-3, 3, (200, 1, 1)), 10.0 ** rng.uniform(-1, 0, (200, 1, 1)))
    x = np.broadcast_to(x, (200, 1, 48)) + rng.normal(0, 0.5, (200, 1, 48))
    q = networks.quantized(model, x.astype(np.float32), scheme="w8a16")
    boundary = keras.Model(q.input, q.layers[1].output)
    wanted = exact(model.layers[-1], networks.run(boundary, x.astype(np.float32)))
    error = np.abs(networks.run(q, x.astype(np.float32)) - wanted).max() / np.abs(wanted).max()
    assert error < 2e-3
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x.astype(np.float32)))


@pytest.mark.parametrize("name", ["layer", "rms_scaling", "rms", "group"])
def test_gradients_are_those_of_the_float_layer(name):
    import tensorflow as tf

    model = network(*LAYERS[name])
    x = tf.constant(networks.data(model))
    q = networks.quantized(model, x.numpy())
    weight = tf.constant(np.random.default_rng(0).normal(0, 1, x.shape).astype(np.float32))

    def gradients(net):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(weight * net(x, training=True))
        return tape.gradient(loss, [x, *net.trainable_variables])

    of_x, *wanted = gradients(model)
    found_of_x, *found = gradients(q)
    is_close = np.linalg.norm(found_of_x - of_x) < 0.15 * np.linalg.norm(of_x)
    assert is_close, (found_of_x, of_x)
    # Gains train in units of a power of two near the root of the number of values.
    for a, b in zip(found, wanted, strict=True):
        ratio = np.linalg.norm(a) / np.linalg.norm(b)
        assert 0.65 < ratio < 1.55
        cosine = np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert cosine > 0.98


def test_frozen_weights_stay():
    model = network(*LAYERS["layer"])
    model.layers[-1].trainable = False
    q = networks.quantized(model, spread((5, 12)))
    assert not q.trainable_variables


@pytest.mark.parametrize(("name", "count"), [("no_center", 1), ("no_scale", 1), ("plain", 0)])
def test_weights_that_a_layer_lacks_are_not_trained(name, count):
    q = kerasq.quantize_model(network(*LAYERS[name]))
    assert len(q.trainable_variables) == count


def test_training_and_saving(tmp_path):
    networks.set_seed(0)
    x = keras.Input((6, 8), name="x")
    y = L.LayerNormalization(name="norm")(L.Dense(8, name="front")(x))
    model = keras.Model(x, L.Dense(3, name="head")(L.Flatten()(y)))
    data = networks.data(model, 64)
    labels = np.random.default_rng(0).normal(0, 1, (64, 3)).astype(np.float32)
    q = networks.quantized(model, data)
    q.compile(keras.optimizers.SGD(0.01), "mse")
    before = q.evaluate(data, labels, verbose=0)
    gain = np.array(q.get_layer("norm_scaled").kernel)
    q.fit(data, labels, epochs=3, batch_size=16, verbose=0)
    assert q.evaluate(data, labels, verbose=0) < before
    assert not np.array_equal(gain, q.get_layer("norm_scaled").kernel)
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(networks.run(again, data), networks.run(q, data))
    lite = kerasq.export_tflite(again)
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))


@pytest.mark.skipif(not hasattr(keras.ops, "layer_normalization"), reason="older Keras")
def test_operations():
    gamma = keras.Variable(np.linspace(0.5, 2.0, 8, dtype=np.float32))
    beta = np.linspace(-1.0, 1.0, 8, dtype=np.float32)
    x = keras.Input((4, 8), name="x")
    y = keras.ops.layer_normalization(x, gamma, beta, axis=-1)
    y = keras.ops.layer_normalization(y, axis=[1, 2])
    y = keras.ops.rms_normalization(y, None, axis=[1, 2]) + keras.ops.normalize(x, axis=(1, 2))
    y = y + keras.ops.rms_normalization(x, beta) + keras.ops.rms_normalization(x, scale=-0.5)
    y = y + keras.ops.rms_normalization(x, scale=beta.tolist())
    model = keras.Model(x, y)
    data = networks.data(model)
    q = networks.quantized(model, data)
    assert all(isinstance(layer, QuantizeWrapper) for layer in q.layers if layer.weights)
    lite = kerasq.export_tflite(q, check=False)
    assert "Integer only" in str(lite)
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))
    assert networks.sqnr(model, q, data) > 25.0


def test_sizes_that_are_not_known_stay_float(capsys):
    x = keras.Input((None, 8), name="x")
    y = L.LayerNormalization(name="norm")(L.Dense(8, name="front")(x))
    kerasq.quantize_model(keras.Model(x, y))
    assert "'norm' (LayerNormalization: integer only of samples of known size" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("scheme", "least"), [("w8a8", 33.0), ("w8a16", 45.0)])
@pytest.mark.parametrize(
    "layer",
    [
        L.UnitNormalization(),
        L.Lambda(keras.ops.normalize),
        L.Lambda(lambda v: tf.math.l2_normalize(v, -1)),
    ],
)
def test_long_vectors_of_unit_length_have_steps_of_their_own(layer, scheme, least):
    """L2_NORMALIZATION's are 1/128: 128 values have 31.8 dB at most, 52.9 - 10 log10 n."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((16,)), L.Dense(128), layer])
    x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
    q = kerasq.quantize_model(model, scheme)
    kerasq.calibrate(q, x)
    found, want = networks.run(q, x), networks.run(model, x)
    assert 10 * np.log10(np.mean(want**2) / np.mean((found - want) ** 2)) > least
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), found)
    # All spellings are divided twice.
    assert [op.name for op in lite.ops].count("BATCH_MATMUL") == 2
