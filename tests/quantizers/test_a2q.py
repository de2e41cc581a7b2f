"""A2Q: integers that keep to the bound exactly, a NumPy twin, gradients, and the whole road."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.kernel_wrapper import KernelWrapper
from tests import networks

L = keras.layers


def kernels(q):
    return [layer for layer in q.layers if isinstance(layer, KernelWrapper)]


def largest_sums(wrapper):
    """`m |w|_1 + |b|` of each channel, in Python's integers, of what the device gets."""
    weights, grid = wrapper.integer_weights(), wrapper.input_grids()[0].numpy()
    codes = weights.codes.numpy().astype(np.int64)
    assert np.abs(codes).max() <= 2 ** (weights.grid.bits - 1) - 1
    zero = int(grid.zero_point)
    farthest = max(grid.qmax - zero, zero - grid.qmin)
    norms = np.abs(codes).reshape(-1, codes.shape[-1]).sum(0)
    return norms * farthest + np.abs(weights.bias.numpy().astype(np.int64))


def bounded(q, bits):
    """Asserts the bound of all layers; returns the largest share of it that one uses."""
    sums = np.concatenate([largest_sums(wrapper) for wrapper in kernels(q)])
    assert sums.max() <= 2 ** (bits - 1) - 1
    assert max(row.accumulator_bits or 0 for row in kerasq.summary(q).layers) <= bits
    return sums.max() / (2 ** (bits - 1) - 1)


@pytest.mark.parametrize(
    ("make", "batch_norm", "scheme", "bits", "gradient"),
    [
        (networks.residual, "keep", "w8a8", 16, "none"),
        (networks.mobile, "fold", "w4a8", 14, "lsq"),
        (networks.sequential, "keep", "w8a16", 24, "none"),
        (networks.sequential, "keep", "w8a4", 12, "lsq"),
    ],
)
def test_no_channel_is_beyond_the_bound(make, batch_norm, scheme, bits, gradient):
    model = make()
    q = networks.quantized(
        model,
        scheme=scheme,
        batch_norm=batch_norm,
        range_gradient=gradient,
        weights=kerasq.A2Q(accumulator_bits=bits),
    )
    share = bounded(q, bits)
    if scheme == "w8a4":
        # Learned scales begin where the whole norm fits: codes of 4 bits are 15 from 0 at most.
        wrapper = q.get_layer("logits")
        norm = np.abs(wrapper.ranged_kernel()).sum(0)
        learned = wrapper.weight_quantizer.kernel_range
        np.testing.assert_allclose(learned, 127 * norm * 15 / (2**11 - 1), rtol=1e-3)
    if bits == 16:
        assert share > 0.95  # It is used up, and other weights do not keep to it.
        plain = networks.quantized(model, scheme=scheme, batch_norm=batch_norm)
        assert max(largest_sums(w).max() for w in kernels(plain)) > 2 ** (bits - 1)
    # Whatever training makes of weights, biases and what is learned.
    rng = np.random.default_rng(0)
    for variable in q.trainable_variables:
        if variable.name not in ("range_min", "range_max"):
            variable.assign(variable * np.exp(rng.normal(0, 2.0, variable.shape)))
    bounded(q, bits)


@pytest.mark.parametrize("gradient", ["none", "lsq"])
def test_no_input_overflows(gradient):
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((3, 3, 8)), L.Conv2D(4, 3, name="conv")])
    model.layers[0].bias.assign([5.0, -5.0, 0.3, 0.0])
    x = networks.data(model, 64)
    q = networks.quantized(model, x, range_gradient=gradient, weights=kerasq.A2Q())
    # Each input at the end of its range that adds most, upwards and downwards, for each channel.
    signs = np.sign(np.moveaxis(q.get_layer("conv").integer_weights().codes.numpy(), -1, 0))
    worst = np.concatenate([signs, -signs]).astype("float32") * 100.0
    for data in (worst, x):
        found = kerasq.fixed_point(q, data, accumulator_bits=16, overflow="wrap")
        assert found.overflows == 0.0 and found.layers[0].needed_bits <= 16
    plain = networks.quantized(model, x)
    assert kerasq.fixed_point(plain, worst, accumulator_bits=16).overflows > 0.0


def quantizer(w, gradient="lsq", bits=8, farthest=255.0, bias=0.0, **options):
    found = kerasq.A2Q(bits=bits, range_gradient=gradient, **options)
    found.room = lambda: (tf.constant(farthest), tf.zeros(w.shape[-1]) + bias)
    found.start(lambda: tf.constant(w))
    return found


def kernel(shape=(3, 3, 5, 4)):
    return np.random.default_rng(0).normal(0, 0.4, shape).astype("float32")


@pytest.mark.parametrize("bias", [0.0, 7.0])
@pytest.mark.parametrize("accumulator_bits", [14, 32])
def test_numpy_computes_the_same(accumulator_bits, bias):
    w = kernel()
    found = quantizer(w, accumulator_bits=accumulator_bits, bias=bias)
    high, mean = np.array([0.5, 1.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.4, 0.8])
    found.kernel_range.assign(high)
    found.kernel_magnitude.assign(mean)
    limit = 2.0 ** (accumulator_bits - 1) - 1.0
    s = np.maximum(high / 127, 2.0 * bias / limit)
    norm = np.minimum(mean * 45, (s * limit - bias) / 255.0)
    exact = np.clip(w * norm / np.abs(w).sum((0, 1, 2)) / s, -127, 127)
    # Those that lie next to a whole number aside, which the slack moves over it.
    sure = np.abs(exact - np.rint(exact)) > 1e-2
    codes = found.codes(tf.constant(w)).numpy()
    np.testing.assert_array_equal(codes[sure], np.trunc(exact)[sure])
    np.testing.assert_allclose(found.scale(tf.constant(w)), s, rtol=1e-3)
    beyond = np.maximum(np.log2(mean * 45) - np.log2((s * limit - bias) / 255.0), 0.0)
    np.testing.assert_allclose(found.loss(tf.constant(w)), 1e-3 * beyond.sum(), rtol=1e-2)
    assert (beyond.sum() > 0.0) == (accumulator_bits == 14)


def test_a_range_that_follows_is_the_least_that_fits():
    w = kernel()
    found = quantizer(w, "none", accumulator_bits=14, bias=3.0)
    scale = found.scale(tf.constant(w)).numpy().astype(np.float64)

    def sums(scale):
        return np.floor(np.abs(w) / scale).sum((0, 1, 2)) * 255 + 3.0 / scale

    assert (sums(scale) <= 2**13 - 1).all() and (sums(scale * 0.98) > 2**13 - 1).all()
    assert found.loss(tf.constant(w)) is None and not found.trainable_variables
    # Where the bound holds anyway, the largest weight has the largest code.
    wide = quantizer(w, "none", accumulator_bits=32)
    largest = np.abs(w).max((0, 1, 2))
    np.testing.assert_allclose(wide.scale(tf.constant(w)), largest / 127, rtol=1e-6)


@pytest.mark.parametrize("is_bound", [False, True])
def test_gradients_of_what_is_learned(is_bound):
    w = kernel()
    found = quantizer(w, accumulator_bits=16 if is_bound else 32)
    found.kernel_range.assign(np.full(4, 3.0 if is_bound else 2.0))
    upstream = np.random.default_rng(1).normal(size=w.shape).astype("float32")
    x = tf.Variable(w)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(found.fake_quant(x) * upstream)
    variables = [found.kernel_magnitude.value, found.kernel_range.value, x]
    d_mean, d_high, dx = tape.gradient(y, variables, unconnected_gradients="zero")
    total = np.abs(w).sum((0, 1, 2))
    s = found.scale(tf.constant(w)).numpy()
    norm = found.norms(tf.constant(w), tf.constant(s))[int(is_bound)].numpy()
    exact, codes = w * norm / total / s, found.codes(tf.constant(w)).numpy()
    # By hand: y = s (x + what rounding adds), x = norm v / |v|_1 / s, norm = mean * 45 or s T.
    along = (upstream * w / total).sum((0, 1, 2))
    rounding = (upstream * (codes - exact)).sum((0, 1, 2))
    of_scale = rounding + is_bound * along * norm / s
    factor = 1.0 / 127 / np.sqrt(45 * 127)
    np.testing.assert_allclose(d_high, of_scale * factor, rtol=1e-3, atol=1e-6)
    wanted = np.zeros(4) if is_bound else along * 45 / np.sqrt(45)
    np.testing.assert_allclose(d_mean, wanted, rtol=1e-3, atol=1e-6)
    of_v = norm / total * (upstream - np.sign(w) * along)
    np.testing.assert_allclose(dx, of_v, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gradient", ["none", "lsq"])
def test_trained_saved_and_exported_to_the_last_code(tmp_path, gradient):
    pytest.importorskip("tflite_micro")
    model = networks.sequential()
    x, y = networks.data(model, 64), np.arange(64) % 3
    weights = kerasq.A2Q(accumulator_bits=18, penalty=0.5)
    q = networks.quantized(model, x, target="tflm", range_gradient=gradient, weights=weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.SGD(0.05), loss)
    first = codes_of(q)
    q.fit(x, y, batch_size=16, epochs=4, verbose=0)
    assert (first != codes_of(q)).any()
    bounded(q, 18)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    assert loaded.get_layer("conv").weight_quantizer.accumulator_bits == 18
    other = kerasq.retarget(loaded, "litert")
    np.testing.assert_array_equal(codes_of(q), codes_of(other))
    for found in (loaded, other):
        lite = kerasq.export_tflite(found)
        np.testing.assert_array_equal(lite.predict(x), networks.run(found, x))
    np.testing.assert_array_equal(networks.run(loaded, x), networks.run(q, x))
    assert kerasq.fixed_point(q, x, accumulator_bits=18).overflows == 0.0


def codes_of(q):
    return np.concatenate([w.integer_weights().codes.numpy().ravel() for w in kernels(q)])


def test_training_adds_the_penalty():
    model = networks.mlp()
    x = networks.data(model)
    weights = kerasq.A2Q(accumulator_bits=12, penalty=0.5)
    for gradient in ("none", "lsq"):
        q = networks.quantized(model, x, range_gradient=gradient, weights=weights)
        for wrapper in kernels(q):
            if gradient == "lsq":
                magnitude = wrapper.weight_quantizer.kernel_magnitude
                magnitude.assign(magnitude * 4.0)
        q(x, training=True)
        penalties = [w.weight_quantizer.loss(w.ranged_kernel()) for w in kernels(q)]
        if gradient == "none":
            assert penalties == [None] * 3 and not q.losses
        else:
            np.testing.assert_allclose(q.losses, penalties, rtol=1e-6)
            assert sum(penalties) > 0.5
    q(x, training=False)
    assert not q.losses


def test_all_calls_of_a_layer_count():
    x = keras.Input((3, 4))
    steps = L.SimpleRNN(6, name="steps")(x)
    twice = L.Dense(6, name="twice")
    twice.build((None, 6))
    twice.bias.assign([4.0, -2.0, 0.0, 1.0, 0.5, 0.1])
    # The second one reads values of another size, on another grid.
    y = twice(keras.layers.Rescaling(0.05, 0.2)(twice(steps)))
    q = networks.quantized(keras.Model(x, y), weights="a2q", range_gradient="lsq")
    grids = [w.input_grids()[0].numpy() for w in kernels(q) if w.source == "twice"]
    assert len(grids) == 2 and grids[0].scale > 3 * grids[1].scale
    again = [w.name for w in kernels(q) if w.leader is not None]
    assert again == ["steps_recurrent_2", "twice_2"]
    bounded(q, 16)
    q(networks.data(q), training=True)
    assert len(q.losses) == 3  # Once for each layer; the Rescaling is constant.


def test_zeros_stay():
    model = networks.sequential()
    conv = model.get_layer("conv")
    pruned = conv.kernel.numpy() * (np.random.default_rng(0).random(conv.kernel.shape) < 0.5)
    conv.kernel.assign(pruned)
    q = networks.quantized(model, weights="a2q", keep_zeros=True)
    codes = q.get_layer("conv").integer_weights().codes.numpy()
    assert (codes[pruned == 0.0] == 0.0).all() and codes.any()
    assert bounded(q, 16) > 0.9


def test_bad_arguments():
    for bits in (7, 33, 16.5):
        with pytest.raises(ValueError, match=r"`accumulator_bits` must be an integer in \[8, 32"):
            kerasq.A2Q(accumulator_bits=bits)
    with pytest.raises(ValueError, match=r"`penalty` must be at least 0. Received: penalty=-1"):
        kerasq.A2Q(penalty=-1)
    model = networks.mlp()
    with pytest.raises(ValueError, match="must have 2 to 8 bits, and a scale for each"):
        kerasq.quantize_model(model, weights="a2q", granularity="per_tensor")
    with pytest.raises(ValueError, match="Received: 1 bits, granularity='per_channel' at layer"):
        kerasq.quantize_model(model, "w1a8", weights="a2q")
    with pytest.raises(ValueError, match="must be uniform, of 2 bits or more"):
        kerasq.quantize_model(model, weights="a2q", scales="power_of_two")
