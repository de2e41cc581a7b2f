"""Every kind of weights against a NumPy twin, and all of them against one contract."""

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.quantizers.activations import NARROWEST
from kerasq.quantizers.binary import Binary
from kerasq.quantizers.power_of_two import FREE, PowerOfTwo
from kerasq.quantizers.ternary import TrainedTernary
from kerasq.quantizers.weights import weight_quantizer
from tests import networks

KINDS = [
    *[("uniform", bits) for bits in range(1, 9)],
    *[("dorefa", bits) for bits in (1, 2, 3, 4, 7, 8)],
    ("ternary", 2),
    ("trained_ternary", 2),
    *[("power_of_two", bits) for bits in (2, 3, 4, 5)],
    *[("a2q", bits) for bits in (2, 4, 8)],
]


def kernel(seed=0, shape=(3, 3, 5, 7)):
    """Weights whose channels have different sizes; one is all 0."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.4, shape) * rng.uniform(0.2, 2.0, shape[-1])
    w[..., 3] = 0.0
    return w.astype("float32")


def started(kind, bits, w, gradient="lsq"):
    quantizer = weight_quantizer(kind, bits, gradient)
    quantizer.start(lambda: tf.constant(w))
    return quantizer


def frozen(quantizer, w, share=0.5):
    """Freezes a part of the weights of INQ."""
    mask = np.random.default_rng(1).random(w.shape) < share
    quantizer.frozen.assign(np.where(mask, quantizer.powers(tf.constant(w)), FREE))
    return mask


# The contract.


@pytest.mark.parametrize("gain", [1.0, 0.37])
@pytest.mark.parametrize("gradient", ["lsq", "none"])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_training_sees_what_the_device_gets(kind, bits, gradient, gain):
    w = kernel()
    quantizer = started(kind, bits, w, gradient)
    if kind == "power_of_two":
        frozen(quantizer, w)
    gains = tf.fill([w.shape[-1]], tf.constant(gain))
    codes, grid = quantizer.integer(tf.constant(w), gains, least=tf.zeros(w.shape[-1]))
    codes, scale = codes.numpy(), grid.scale.numpy()
    assert (codes == np.rint(codes)).all() and (scale > 0).all()
    assert np.abs(codes).max() <= 2 ** (quantizer.code_bits - 1) - 1
    fake = quantizer.fake_quant(tf.constant(w), gain).numpy()
    # Not to the last bit: LSQ's codes go through float32, the device's are rounded in float64.
    np.testing.assert_allclose(fake, codes * scale, rtol=2e-6, atol=1e-7 * scale.max())


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_a_graph_computes_the_codes_and_scales_of_the_export(kind, bits):
    # TensorFlow's optimizer multiplies by 1/15 where the program divides by 15.
    w = tf.Variable(kernel(shape=(3, 3, 5, 64)))
    gains = tf.Variable(np.random.default_rng(2).normal(size=64).astype("float32"))
    quantizer = started(kind, bits, w.numpy())

    def integer():
        codes, grid = quantizer.integer(w.value(), gains.value(), least=tf.zeros(64))
        return codes, grid.scale

    for eager, traced in zip(integer(), tf.function(integer)(), strict=True):
        np.testing.assert_array_equal(eager.numpy(), traced.numpy())


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_negative_gains_turn_signs(kind, bits):
    w = kernel()
    quantizer = started(kind, bits, w)
    gains = np.where(np.arange(7) % 2, -1.5, 0.5).astype("float32")
    least = tf.zeros(7)
    codes, grid = quantizer.integer(tf.constant(w), tf.constant(gains), least=least)
    plain, own = quantizer.integer(tf.constant(w), tf.ones(7), least=least)
    np.testing.assert_allclose(grid.scale, own.scale * np.abs(gains), rtol=1e-6)
    ties = np.abs(np.abs(codes.numpy()) - np.abs(plain.numpy())).max()
    assert ties <= (kind == "uniform")
    np.testing.assert_array_equal(np.sign(codes), np.sign(plain) * np.sign(gains))


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_no_scale_is_below_the_least(kind, bits):
    w = kernel()
    quantizer = started(kind, bits, w)
    _, own = quantizer.integer(tf.constant(w), tf.ones(7), least=tf.zeros(7))
    least = own.scale.numpy() * np.where(np.arange(7) == 2, 3.0, 0.5).astype("float32")
    codes, grid = quantizer.integer(tf.constant(w), tf.ones(7), least=tf.constant(least))
    np.testing.assert_array_equal(grid.scale[2], least[2])
    np.testing.assert_array_equal(grid.scale[:2], own.scale[:2])
    real = codes.numpy()[..., 2] * least[2]
    want = quantizer.fake_quant(tf.constant(w)).numpy()[..., 2]
    assert np.abs(real - want).max() <= 0.51 * least[2] * (2 if kind == "uniform" else 1)


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_gradients_reach_the_weights_that_train(kind, bits):
    w = kernel()
    # What A2Q learns is more than a range.
    quantizer = started(kind, bits, w, "none" if kind == "a2q" else "lsq")
    x = tf.Variable(w)
    upstream = np.random.default_rng(2).normal(size=w.shape).astype("float32")
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(quantizer.fake_quant(x, 0.5) * upstream)
    dx = tape.gradient(y, x).numpy()
    inside = np.abs(w) < 0.2 * np.abs(w).max((0, 1, 2))
    inside[..., 3] = False
    expected = 0.5 * upstream
    if kind == "dorefa" and bits not in (1, 8):
        expected = expected * (1 - np.tanh(w) ** 2)
    if kind == "trained_ternary":
        inside &= np.abs(w) <= 0.05 * np.abs(w).max((0, 1, 2))
    np.testing.assert_allclose(dx[inside], expected[inside], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "bits", "widths"),
    [
        ("ternary", 4, "[2]"),
        ("trained_ternary", 3, "[2]"),
        ("power_of_two", 6, "[2, 3, 4, 5]"),
    ],
)
def test_widths_that_a_kind_does_not_have(kind, bits, widths):
    text = f"Weights of kind {kind!r} must have a width in {widths}. Received: {bits} bits."
    with pytest.raises(ValueError, match=re.escape(text)):
        weight_quantizer(kind, bits, "lsq")


# Twins.


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_dorefa(bits):
    w = kernel()
    n = 2**bits - 1
    t = np.tanh(w.astype(float))
    largest = np.abs(t).max()
    # Zhou S. et al. 2016, equation 9; ties aside, which float32 may move.
    position = n * (t / (2 * largest) + 0.5)
    sure = np.abs(position - np.floor(position) - 0.5) > 1e-4
    want = largest * (2 * np.rint(position) / n - 1)
    found = started("dorefa", bits, w).fake_quant(tf.constant(w)).numpy()
    np.testing.assert_allclose(found[sure], want[sure], rtol=1e-5)
    codes = started("dorefa", bits, w).codes(tf.constant(w)).numpy()
    assert set(np.unique(codes)) <= set(range(-n, n + 1, 2))


def test_binary():
    w = kernel()
    found = started("uniform", 1, w).fake_quant(tf.constant(w)).numpy()
    want = np.where(w < 0, -1, 1) * np.abs(w).mean((0, 1, 2))
    np.testing.assert_allclose(found[..., :3], want[..., :3], rtol=1e-5)
    assert np.abs(found[..., 3]).max() < 1e-5


def test_ternary():
    w = kernel()
    found = started("ternary", 2, w).fake_quant(tf.constant(w)).numpy()
    for c in range(7):
        size = np.abs(w[..., c])
        chosen = size > 0.7 * size.mean()
        a = size[chosen].mean() if chosen.any() else 0.0
        np.testing.assert_allclose(found[..., c], np.sign(w[..., c]) * chosen * a, rtol=1e-5)


def test_trained_ternary():
    w = kernel()
    quantizer = started("trained_ternary", 2, w)
    quantizer.positive.assign(np.linspace(0.1, 0.7, 7))
    quantizer.negative.assign(np.linspace(0.7, 0.1, 7))
    x = tf.Variable(w)
    upstream = np.random.default_rng(2).normal(size=w.shape).astype("float32")
    with tf.GradientTape() as tape:
        y = quantizer.fake_quant(x)
        loss = tf.reduce_sum(y * upstream)
    variables = [quantizer.positive.value, quantizer.negative.value, x]
    dp, dn, dx = (g.numpy() for g in tape.gradient(loss, variables))
    for c in range(7):
        v, g = w[..., c], upstream[..., c]
        p, n = quantizer.positive.numpy()[c], quantizer.negative.numpy()[c]
        threshold = 0.05 * np.abs(v).max()
        up, down = v > threshold, v < -threshold
        step = max(p, n) / 127
        values = up * np.rint(p / step) * step - down * np.rint(n / step) * step
        np.testing.assert_allclose(y[..., c], values, rtol=1e-5, atol=1e-8)
        # Zhu et al. 2017, equations 7 and 8, in units of the largest magnitude.
        np.testing.assert_allclose(dp[c], g[up].sum(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(dn[c], -g[down].sum(), rtol=1e-4, atol=1e-5)
        slope = np.where(up, p, np.where(down, n, 1.0))
        if np.abs(v).max() > 0:
            slope = np.where(up | down, slope / np.abs(v).max(), 1.0)
        np.testing.assert_allclose(dx[..., c], g * slope, rtol=1e-4)


def twin_of_inq(w, bits):
    """Equations 3 and 4 of Zhou A. et al. 2017, weight by weight."""
    n1 = int(np.floor(np.log2(4 * np.abs(w).max() / 3)))
    n2 = max(n1 + 1 - 2 ** (bits - 1) // 2, n1 - 6)  # int8 holds seven exponents
    levels = [0.0, *(2.0**n for n in range(n2, n1 + 1))]
    out = np.zeros_like(w)
    for index, value in np.ndenumerate(w):
        for alpha, beta in itertools.pairwise(levels):
            if (alpha + beta) / 2 <= abs(value) < 3 * beta / 2:
                out[index] = np.sign(value) * beta
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_powers_of_two(bits):
    w = kernel()
    w[0, 0, 0] = [0.75, -0.375, 1.5, 0.0, 3.0, -0.1875, 0.5]  # ends of intervals
    quantizer = started("power_of_two", bits, w)
    codes = quantizer.powers(tf.constant(w))
    found = (codes * quantizer.scale(tf.constant(w))).numpy()
    for c in (0, 1, 2, 4, 5, 6):
        np.testing.assert_array_equal(found[..., c], twin_of_inq(w[..., c], bits))
    sizes = set(np.abs(np.unique(codes)).astype(int))
    assert sizes <= {0, *(2**k for k in range(7 - min(7, 2 ** (bits - 2)), 7))}


def test_frozen_weights_are_exact_and_get_no_gradient():
    w = kernel()
    quantizer = started("power_of_two", 4, w)
    mask = frozen(quantizer, w)
    x = tf.Variable(w)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantizer.fake_quant(x) * tf.range(1.0, 8.0))
    gradient = tape.gradient(loss, x).numpy()
    assert (gradient[mask] == 0).all() and (gradient[~mask] != 0).all()
    drifted = quantizer.restored(tf.constant(w + 0.01)).numpy()
    powers = quantizer.powers(tf.constant(w)) * quantizer.scale(tf.constant(w))
    np.testing.assert_array_equal(drifted[mask], powers.numpy()[mask])
    np.testing.assert_array_equal(drifted[~mask], (w + np.float32(0.01))[~mask])


# The whole road.


@pytest.mark.parametrize(
    ("scheme", "weights", "make", "batch_norm"),
    [
        ("w2a2", "uniform", networks.mobile, "keep"),
        ("w4a4", "dorefa", networks.mobile, "keep"),
        ("w2a8", "ternary", networks.residual, "keep"),
        ("w2a4", "trained_ternary", networks.mobile, "fold"),
        ("w1a4", "uniform", networks.residual, "keep"),
    ],
)
def test_few_bits_run_as_they_were_trained(scheme, weights, make, batch_norm, tmp_path):
    model = make()
    x = np.random.default_rng(0).uniform(0, 1, (48, 12, 12, 3)).astype("float32")
    y = np.arange(48) % 5
    q = kerasq.quantize_model(model, scheme, weights=weights, batch_norm=batch_norm)
    kerasq.calibrate(q, x)
    q.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", jit_compile=False)
    q.fit(x, y, verbose=0)
    lite = kerasq.export_tflite(q)
    assert not lite.float_ops
    report = kerasq.compare(q, lite, x=x)
    assert report.max_lsb == 0 and all(layer.max_lsb in (0, None) for layer in report.layers)
    portable = kerasq.TFLiteModel(lite.content, kernels="reference")
    assert max(layer.max_lsb or 0 for layer in kerasq.compare(q, portable, x=x).layers) <= 1
    widths = {"w": int(scheme[1]), "a": int(scheme[3:])}
    for layer in q.layers:
        if isinstance(layer, KernelWrapper):
            (grid,) = (g.numpy() for g in layer.input_grids())
            assert grid.qmax - grid.qmin < 2 ** widths["a"] and grid.qmax == 127
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    assert kerasq.export_tflite(loaded).content == lite.content


@pytest.mark.parametrize(
    ("scheme", "weights"),
    [("w4a8", "uniform"), ("w3a8", "uniform"), ("w2a8", "ternary"), ("w1a8", "uniform")],
)
def test_transposed_convolutions_have_no_packed_kernel(scheme, weights):
    image = keras.Input((10, 10, 3))
    x = keras.layers.Conv2DTranspose(16, 3, activation="relu")(image)
    x = keras.layers.Conv2DTranspose(8, 3, strides=2)(x)
    q = kerasq.quantize_model(keras.Model(image, x), scheme, weights=weights)
    x = np.random.default_rng(0).uniform(0, 1, (16, 10, 10, 3)).astype("float32")
    kerasq.calibrate(q, x)
    lite = kerasq.export_tflite(q)
    assert all(layer.max_lsb in (0, None) for layer in kerasq.compare(q, lite, x=x).layers)
    assert "TRANSPOSE_CONV on int8" in str(lite)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: keras.layers.Conv2DTranspose(4, 3, activation="relu")(x),
        lambda x: keras.layers.ReLU()(keras.layers.GlobalAveragePooling2D(keepdims=True)(x)),
        lambda x: keras.layers.ReLU(6.0)(keras.layers.ELU()(x)),
        lambda x: keras.layers.ReLU()(keras.layers.Concatenate()([x, x])),
        lambda x: keras.layers.ReLU()(keras.layers.Maximum()([x, -x])),
        lambda x: keras.layers.ReLU()(keras.layers.Subtract()([x, 0.5 * x])),
    ],
)
def test_relus_behind_operators_that_cannot_fuse_one(make):
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    y = keras.layers.Conv2D(2, 1)(make(x))
    q = kerasq.quantize_model(keras.Model(image, y), "w4a3")
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 3))
    kerasq.calibrate(q, x)
    lite = kerasq.export_tflite(q)
    assert not lite.float_ops and kerasq.compare(q, lite, x=x).max_lsb == 0


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_channels_that_a_normalization_turned_off(kind, bits):
    w = kernel()
    quantizer = started(kind, bits, w)
    gains = tf.constant([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    codes, grid = quantizer.integer(tf.constant(w), gains, least=tf.zeros(7))
    assert np.isfinite(codes).all() and (grid.scale.numpy() > 0).all()
    np.testing.assert_array_equal(codes.numpy()[..., 1], 0.0)


def test_codes_of_few_bits_stay_within_their_levels():
    model = networks.residual()
    x = np.random.default_rng(0).uniform(0, 1, (48, 12, 12, 3)).astype("float32")
    q = kerasq.quantize_model(model, "w4a3")
    kerasq.calibrate(q, x)
    lite = kerasq.export_tflite(q)
    wide = np.concatenate([x, 30 * x, -30 * x])  # far outside of what was seen
    assert kerasq.compare(q, lite, x=wide).max_lsb == 0


def test_first_and_last():
    model = networks.residual()
    ends = kerasq.first_and_last(model)
    assert ends == ("conv", "probs")
    q = kerasq.quantize_model(model, "w2a2", overrides=dict.fromkeys(ends, "w8a8"))
    bits = {x.source: x.bits.weight_bits for x in q.layers if isinstance(x, KernelWrapper)}
    assert bits == {"conv": 8, "branch": 2, "probs": 8}


@pytest.mark.parametrize("is_read_narrow", [True, False])
def test_only_what_a_layer_of_few_bits_reads_has_few_bits(is_read_narrow, tmp_path):
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = keras.layers.MaxPooling2D(2)(keras.layers.Dropout(0.1)(x))
    x = keras.layers.Flatten()(x)
    model = keras.Model(image, keras.layers.Dense(3, name="head")(x))
    q = kerasq.quantize_model(model, "w2a2", overrides={} if is_read_narrow else {"head": "w8a8"})
    q.save(tmp_path / "q.keras")
    for found in (q, keras.models.load_model(tmp_path / "q.keras")):
        assert found.get_layer("conv").output_quantizer.bits == (2 if is_read_narrow else 8)
        assert sum(x.name.endswith("_int2") for x in found.layers) == 1  # that of the input


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (keras.layers.MultiHeadAttention(2, 4, name="first"), 2),
        (keras.layers.GroupQueryAttention(4, 2, 1, name="first"), 2),
        (keras.layers.TimeDistributed(keras.layers.Dense(6), name="first"), 1),
    ],
)
def test_first_and_last_are_in_attention_and_distributed_layers(layer, arguments):
    x = keras.Input((4, 8), name="x")
    y = keras.layers.Rescaling(2.0, name="scaled")(x)
    y = keras.layers.LayerNormalization(name="norm")(layer(*[y] * arguments))
    y = keras.layers.Dense(3, name="middle")(y)
    last = keras.layers.TimeDistributed(keras.layers.Dense(2), name="last")
    model = keras.Model(x, keras.layers.Softmax(name="end")(last(y)))
    assert kerasq.first_and_last(model) == ("first", "last")
    kerasq.quantize_model(
        model, "w4a8", overrides=dict.fromkeys(kerasq.first_and_last(model), "w8a8")
    )


def test_first_and_last_of_a_model_without_weights():
    model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match=r"must have layers with weights.*without any"):
        kerasq.first_and_last(model)


def test_unknown_weights():
    with pytest.raises(ValueError, match=r"`weights` must be one of \['uniform'.*weights='inq'"):
        kerasq.quantize_model(networks.residual(), "w4a8", weights="inq")


@pytest.mark.parametrize(
    ("scheme", "weights", "said"),
    [
        ("w2a8", "uniform", "2-bit codes as int4"),
        ("w4a8", "dorefa", "5-bit codes as int8"),
        ("w2a8", "trained_ternary", "3 values a channel as int8"),
        ("w3a8", "power_of_two", "powers of two as int8"),
        ("w8a8", "uniform", None),
    ],
)
def test_the_export_says_which_weights_are_narrower_than_their_type(scheme, weights, said):
    target = "litert-x86-64"
    q = kerasq.quantize_model(networks.residual(), scheme, weights=weights, target=target)
    x = np.random.default_rng(0).uniform(0, 1, (8, 12, 12, 3)).astype("float32")
    kerasq.calibrate(q, x)
    if weights == "power_of_two":
        q.compile("sgd", "mse")
        inq = kerasq.IncrementalQuantization([1.0], epochs=1)
        q.fit(x, np.zeros((8, *q.output_shape[1:])), verbose=0, callbacks=[inq])
    text = str(kerasq.export_tflite(q))
    assert ("Weights stored wider" in text) == (said is not None)
    assert "Integer only." in text
    assert said is None or f"branch ({said}, CONV_2D on int8)" in text


def test_power_of_two_is_what_the_class_says():
    quantizer = started("power_of_two", 5, kernel())
    assert isinstance(quantizer, PowerOfTwo) and quantizer.code_bits == 8
    scale = quantizer.scale(tf.constant(kernel())).numpy()
    assert (np.log2(scale) == np.rint(np.log2(scale))).all()


def test_binary_weights_with_the_gradient_of_xnor():
    w = kernel(shape=(2, 3, 4))
    w[0, 0, 0], w[1, 2, 1] = 1.5, -1.0
    quantizer = Binary(gradient="xnor", bits=1)
    g = np.random.default_rng(1).normal(size=w.shape).astype("float32")
    variable = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        y = quantizer.fake_quant(variable)
    mean = np.maximum(np.abs(w).mean(axis=(0, 1)), NARROWEST)
    np.testing.assert_allclose(y, np.where(w < 0, -1, 1) * mean, rtol=1e-6)
    want = g * (1 / 6 + np.where(np.abs(w) <= 1, mean, 0.0))
    np.testing.assert_allclose(tape.gradient(y, variable, g), want, rtol=1e-5)
    again = Binary.from_config(quantizer.get_config())
    assert again.gradient == "xnor"
    with pytest.raises(ValueError, match=r"`gradient` must be one of .*gradient='sign'"):
        Binary(gradient="sign")


def test_trained_ternary_weights_of_a_layer_share_magnitudes():
    w = kernel(shape=(2, 3, 4))
    quantizer = TrainedTernary(threshold=0.1, per_layer=True, bits=2)
    quantizer.start(lambda: tf.constant(w))
    limit = 0.1 * np.abs(w).max()
    above, below = w > limit, w < -limit
    p, n = w[above].mean(), -w[below].mean()
    np.testing.assert_allclose([quantizer.positive, quantizer.negative], [p, n], rtol=1e-6)
    g = np.random.default_rng(1).normal(size=w.shape).astype("float32")
    variable = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        y = quantizer.fake_quant(variable)
    found = tape.gradient(y, [variable, quantizer.positive.value, quantizer.negative.value], g)
    step = max(p, n) / 127
    want = np.where(above, np.rint(p / step), np.where(below, -np.rint(n / step), 0.0)) * step
    np.testing.assert_allclose(y, want, rtol=1e-5)
    slope = np.where(above, p, np.where(below, n, np.abs(w).max())) / np.abs(w).max()
    np.testing.assert_allclose(found[0], g * slope, rtol=1e-5)
    np.testing.assert_allclose(found[1:], [g[above].sum(), -g[below].sum()], rtol=1e-4)
    assert TrainedTernary.from_config(quantizer.get_config()).per_layer


@pytest.mark.parametrize(
    ("scheme", "weights"),
    [("w1a8", Binary(gradient="xnor")), ("w2a8", TrainedTernary(per_layer=True))],
)
def test_the_file_has_the_weights_of_an_instance(scheme, weights):
    model = networks.mlp()
    x = networks.data(model)
    q = networks.quantized(model, x, scheme=scheme, weights=weights)
    np.testing.assert_array_equal(
        kerasq.export_tflite(q, check=False).predict(x), networks.run(q, x)
    )
