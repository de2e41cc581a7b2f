"""Thresholds of powers of two: TQT's gradient by hand, and the scales that data lead to."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.fake_quant import fake_quant, fake_quant_per_channel
from kerasq.quantizers.activations import FIRST_BATCHES, PATIENCE
from kerasq.quantizers.threshold import (
    Threshold,
    ThresholdActivations,
    ThresholdWeights,
    best_exponent,
)
from tests import networks

LN2 = np.log(2.0)


def threshold(log2, **options):
    made = Threshold(8, **options)
    made.build()
    made.log2.assign(log2)
    return made


def activations(log2=None, **options):
    made = ThresholdActivations(**{"range_gradient": "tqt", **options})
    made.build()
    if log2 is not None:
        made.threshold.log2.assign(log2)
    return made


def weights(kernel, bits=8, gradient="tqt"):
    made = ThresholdWeights(bits, gradient)
    made.start(lambda: tf.constant(kernel))
    return made


def of_paper(x, g, s, lowest, highest):
    """Equations 6 and 8: dL/dlog2(t) = s ln2 sum g d, d by where x / s lies; and dL/dx."""
    steps = x / s
    inside = (steps >= lowest) & (steps <= highest)
    d = np.where(inside, np.rint(steps) - steps, np.clip(steps, lowest, highest))
    return float(np.sum(g * d) * s * LN2), np.where(inside, g, 0.0)


@pytest.mark.parametrize(
    ("log2", "scale"),
    [(0.0, 2.0**-7), (0.01, 2.0**-6), (-0.99, 2.0**-7), (-1.0, 2.0**-8), (2.58, 2.0**-4)],
)
def test_the_scale_is_the_next_power_of_two(log2, scale):
    assert float(threshold(log2).scale()) == scale
    low, high = (float(end) for end in activations(log2).range())
    assert (low, high) == (-128 * scale, 127 * scale)
    grid = activations(log2, bits=16).grid().numpy()
    assert (grid.scale, grid.zero_point, grid.qmin) == (scale / 256, 0, -(2**15))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_gradient_is_that_of_the_paper(bits):
    rng = np.random.default_rng(0)
    s, half = 0.25, 2.0 ** (bits - 1)
    # Two thirds lie inside, some at the ends.
    x = rng.uniform(-1.5, 1.5, (4, 50)).astype("float32") * s * half
    x[0, :2] = s * half * 2, -s * half * 2
    g = rng.normal(size=x.shape).astype("float32")
    want, inside = of_paper(x.astype(np.float64), g, s, -half, half - 1)
    step, values = tf.constant(s), tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch([step, values])
        ends = -half * step, (half - 1) * step
        y = fake_quant(values, *ends, bits=bits, gradient="tqt", count=50)
    found, dx = tape.gradient(y, [step, values], g)
    np.testing.assert_allclose(float(found) * s * LN2, want, rtol=2e-3)
    np.testing.assert_array_equal(dx, inside.astype("float32"))


def test_the_gradient_of_each_channel():
    rng = np.random.default_rng(1)
    s = np.array([0.5, 0.125], np.float32)
    x = rng.uniform(-80, 80, (3, 30, 2)).astype("float32") * s
    g = rng.normal(size=x.shape).astype("float32")
    step = tf.constant(s)
    with tf.GradientTape() as tape:
        tape.watch(step)
        y = fake_quant_per_channel(tf.constant(x), 63.0 * step, bits=7, gradient="tqt")
    found = tape.gradient(y, step, g)
    for c in range(2):
        want, _ = of_paper(x[..., c].astype(np.float64), g[..., c], s[c], -63, 63)
        np.testing.assert_allclose(float(found[c]) * s[c] * LN2, want, rtol=2e-3)


def test_gradients_are_normed_by_those_before():
    made, v = threshold(-0.5), 0.0
    for steps, upstream in enumerate((3.0, -1.0, 0.5), start=1):
        with tf.GradientTape() as tape:
            y = made.scale() * upstream
        found = float(tape.gradient(y, made.log2.value))
        raw = upstream * 2.0**-7 * LN2  # The ceiling passes it on as it is.
        v = 0.999 * v + 0.001 * raw**2
        want = np.tanh(raw / np.sqrt(v / (1 - 0.999**steps))) / np.sqrt(127)
        np.testing.assert_allclose(found, want, rtol=1e-4)
    np.testing.assert_allclose(float(made.square.value), v, rtol=1e-4)
    # What is not finite leaves no trace.
    with tf.GradientTape() as tape:
        y = made.scale() * np.inf
    assert abs(tape.gradient(y, made.log2.value)) < 0.1
    np.testing.assert_allclose(float(made.square.value), v, rtol=1e-4)


def test_one_that_does_not_learn_has_no_gradient():
    made = threshold(-0.5, learns=False)
    with tf.GradientTape() as tape:
        tape.watch(made.log2.value)
        y = made.scale() * 2.0
    assert tape.gradient(y, made.log2.value) is None and len(made.variables) == 1


def test_a_threshold_that_is_assigned_what_it_is_keeps_every_bit():
    made = threshold(0.0)
    for log2 in np.random.default_rng(0).uniform(-17, 17, 50).astype("float32"):
        made.log2.assign(log2)
        made.assign(made.value())
        assert float(made.log2.value) == log2
    made.assign(tf.constant(8.0))
    assert float(made.log2.value) == 3.0
    made.centre()
    assert float(made.log2.value) == 2.5 and float(made.scale()) == 2.0**-4


# Data.


def test_the_first_batches_widen_a_range_and_an_empty_one_narrows():
    made, rng = activations(), np.random.default_rng(0)
    largest = 0.0
    for _ in range(FIRST_BATCHES):
        x = rng.normal(size=(8, 6)).astype("float32") * rng.uniform(0.2, 3.0)
        made(tf.constant(x), training=True)
        largest = max(largest, float(np.abs(x).max()))
        assert float(made.grid().scale) == 2.0 ** np.ceil(np.log2(largest)) / 128
    kept = float(made.threshold.log2.value)
    made(tf.constant([[largest * 2.0]]), training=True)
    assert float(made.threshold.log2.value) == kept  # Clipping by half may pay.
    made(tf.constant([[largest * 100.0]]), training=True)
    assert float(made.threshold.log2.value) > kept + 1.0
    run = tf.function(made)
    for _ in range(PATIENCE + 150):
        run(tf.constant([[0.1]]), training=True)
    assert 0.1 < float(made.range()[1]) < 0.45


def test_values_are_cut_as_the_relu_does():
    x = tf.constant([[-3.0, 0.3, 5.0, 7.0]])
    for gradient in ("tqt", "none"):
        made = activations(2.5, relu=True, limit=6.0, range_gradient=gradient)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = made.fake_quant(x)
        np.testing.assert_array_equal(y, [[0.0, 0.3125, 5.0, 6.0]])
        np.testing.assert_array_equal(tape.gradient(y, x), [[0.0, 1.0, 1.0, 0.0]])


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_calibration_weighs_the_grids_of_powers_of_two(scheme):
    """Heavy tails: the best scale, by trying all, is less than what holds the largest value."""
    x = np.random.default_rng(0).standard_t(2.5, size=(64, 64)).astype("float32")
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(2)])
    q = kerasq.quantize_model(model, scheme, scales="power_of_two")
    kerasq.calibrate(q, x, method="mse")
    bits = 8 if scheme == "w8a8" else 16
    half = 2 ** (bits - 1)

    def error(exponent):
        step = 2.0**exponent
        codes = np.clip(np.rint(x / step), -half, half - 1)
        return np.sum((codes * step - x).astype(np.float64) ** 2)

    holds_all = int(np.ceil(np.log2(np.abs(x).max()))) - (bits - 1)
    best = min(range(holds_all, holds_all - 4, -1), key=error)
    boundary = q.layers[1]
    assert float(boundary.grid().scale) == 2.0**best
    assert (best < holds_all) == (bits == 8)
    assert float(boundary.output_quantizer.threshold.log2.value) % 1.0 == 0.5


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_start_at_the_least_squared_error(bits):
    rng = np.random.default_rng(0)
    kernel = rng.standard_t(2.5, size=(3, 3, 8, 5)).astype("float32") * [0.01, 0.1, 1, 3, 9]
    kernel = kernel.astype("float32")
    most = 2 ** (bits - 1) - 1
    found = best_exponent(tf.constant(kernel), bits).numpy()
    for c in range(5):
        w = kernel[..., c].astype(np.float64)
        errors = {}
        for n in range(-12, 12):
            step = 2.0 ** (n - (bits - 1))
            errors[n] = np.sum((np.clip(np.rint(w / step), -most, most) * step - w) ** 2)
        assert found[c] == min(errors, key=errors.__getitem__)
    made = weights(kernel, bits)
    np.testing.assert_array_equal(made.scale(tf.constant(kernel)), 2.0 ** (found - (bits - 1)))


def test_a_kernel_that_grows_is_not_cut_off():
    kernel = np.random.default_rng(0).normal(size=(4, 4, 3)).astype("float32")
    made = weights(kernel)
    grown = tf.constant(kernel * 1000.0)
    largest = np.abs(grown).max(axis=(0, 1))
    np.testing.assert_array_less(largest / 8, made.range(grown) * 1.01)
    codes, grid = made.integer(grown, tf.ones(3), least=tf.zeros(3))
    assert np.abs(codes).max() <= 127 and float(grid.scale[0]) == float(made.scale(grown)[0])


def test_weights_that_follow_have_no_variables():
    kernel = np.random.default_rng(0).normal(size=(4, 4, 3)).astype("float32")
    made = weights(kernel, gradient="none")
    assert not made.variables
    for factor in (1.0, 0.25):
        best = best_exponent(tf.constant(kernel * factor), 8)
        np.testing.assert_array_equal(made.scale(tf.constant(kernel * factor)), 2.0 ** (best - 7))


def test_thresholds_may_be_frozen():
    model = networks.mlp()
    q = kerasq.quantize_model(model, scales="power_of_two")
    x = networks.data(model, 16)
    kerasq.calibrate(q, x)
    q.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    before = {v.path: v.numpy() for v in q.weights if v.name == "log2_threshold"}
    q.fit(x, np.zeros((16, 3)), verbose=0, callbacks=[kerasq.FreezeRanges(epoch=0)])
    after = {v.path: v.numpy() for v in q.weights if v.name == "log2_threshold"}
    assert len(before) > 5
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path])
