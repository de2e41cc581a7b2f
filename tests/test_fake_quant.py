import math

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from kerasq import fake_quant
from kerasq.grid import Grid

WIDTHS = [(8, False), (8, True), (4, False), (4, True), (16, False), (16, True)]


def numpy_fake_quant(x, low, high, bits, narrow):
    """`low' + scale * round((clip(x) - low') / scale)` on the nudged range, in float64.

    tensorflow/core/kernels/fake_quant_ops_functor.h: Nudge, and the op's description.
    """
    levels = 2**bits - 1 - narrow
    x, low, high = (np.asarray(a, np.float64) for a in (x, low, high))
    scale = (high - low) / levels
    steps_below_zero = np.floor(-low / scale + 0.5)
    nudged_low, nudged_high = -steps_below_zero * scale, (levels - steps_below_zero) * scale
    steps = np.floor((np.clip(x, nudged_low, nudged_high) - nudged_low) / scale + 0.5)
    return nudged_low + steps * scale, nudged_low, nudged_high


def numpy_gradients(x, low, high, bits, narrow, gradient, count, upstream):
    """The formulas of `kerasq.fake_quant.fake_quant`: straight-through, PACT and LSQ."""
    y, nudged_low, nudged_high = numpy_fake_quant(x, low, high, bits, narrow)
    axes = tuple(range(x.ndim - 1)) if np.ndim(low) else None
    inside = (x >= nudged_low) & (x <= nudged_high)
    dx = upstream * inside
    if gradient not in ("lsq", "clip"):
        return dx, None, None
    dlow = np.sum(upstream * (x < nudged_low), axes)
    dhigh = np.sum(upstream * (x > nudged_high), axes)
    if gradient == "lsq":
        n = 2**bits - 1 - narrow
        error = np.sum(dx * (y - x), axes) / (high - low)
        factor = (n if bits < 8 else 1) * n / math.sqrt(count * n)
        dlow, dhigh = (dlow - error) * factor, (dhigh + error) * factor
    return dx, dlow, dhigh


def case(per_channel, narrow, seed=0):
    """Values on both sides of the range, with the ends; ties are improbable."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2.5, (6, 7, 5)).astype("float32")
    shape = (5,) if per_channel else ()
    high = rng.uniform(1.0, 3.0, shape).astype("float32")
    low = -high if narrow else -rng.uniform(0.5, 3.0, shape).astype("float32")
    return x, np.float32(low), np.float32(high)


def gradients(x, ends, upstream, function=fake_quant.fake_quant, in_function=False, **options):
    """The values, and the gradients of `x` and of the range that there are."""

    def run(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = function(*arguments, **options)
            loss = tf.reduce_sum(y * upstream)
        found = tape.gradient(loss, arguments)
        return y, *(g for g in found if g is not None)

    run = tf.function(run) if in_function else run
    return [t.numpy() for t in run(*(tf.constant(a) for a in (x, *ends)))]


def run_fake_quant(x, low, high, bits, narrow, per_channel):
    if per_channel:
        return fake_quant.fake_quant_per_channel(x, high, bits=bits)
    return fake_quant.fake_quant(x, low, high, bits=bits, narrow=narrow)


@pytest.mark.parametrize(
    ("bits", "narrow", "per_channel"),
    [(*width, False) for width in WIDTHS] + [(bits, True, True) for bits in (2, 4, 8, 16)],
)
@pytest.mark.parametrize("in_function", [False, True])
def test_values_match_the_numpy_twin(bits, narrow, per_channel, in_function):
    x, low, high = case(per_channel, narrow)
    run = tf.function(run_fake_quant) if in_function else run_fake_quant
    y = run(tf.constant(x), tf.constant(low), tf.constant(high), bits, narrow, per_channel).numpy()
    expected, _, _ = numpy_fake_quant(x, low, high, bits, narrow)
    assert y.dtype == np.float32 and y.shape == x.shape
    # The op computes in float32: a hundredth of a step from a tie, 16-bit codes may differ.
    step = (np.float64(high) - low) / (2**bits - 1 - narrow)
    clear = np.abs(np.abs(x - expected) / step - 0.5) > 0.01
    assert clear.mean() > 0.9
    np.testing.assert_allclose(y[clear], expected[clear], rtol=1e-5, atol=1e-5 * np.min(step))
    # It rounds, and it clips: the values are those of the grid and no others.
    grid = Grid.from_range(low, high, bits=bits, narrow=narrow, axis=-1 if per_channel else None)
    np.testing.assert_allclose(grid.dequantize(grid.quantize(y)), y, rtol=1e-5, atol=1e-6)
    assert (y <= grid.high + 1e-5).all() and (y >= grid.low - 1e-5).all()
    assert len(np.unique(y[..., 0])) <= 2**bits


@pytest.mark.parametrize(("bits", "narrow"), [(8, False), (8, True), (4, True), (2, True)])
@pytest.mark.parametrize("gradient", ["lsq", "clip"])
@pytest.mark.parametrize("in_function", [False, True])
def test_gradients_match_the_numpy_twin(bits, narrow, gradient, in_function):
    x, low, high = case(False, narrow, seed=bits)
    upstream = np.random.default_rng(9).normal(size=x.shape).astype("float32")
    options = {"bits": bits, "narrow": narrow, "gradient": gradient, "count": 42.0}
    _, *found = gradients(x, (low, high), upstream, in_function=in_function, **options)
    expected = numpy_gradients(x, low, high, bits, narrow, gradient, 42.0, upstream)
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=2e-4, atol=2e-4)
    assert (found[0] == 0).any() and (found[0] != 0).any()


@pytest.mark.parametrize("shape", [(64, 30, 50), (3, 5, 7), (9, 3)])
def test_the_gradient_of_the_range_is_exact_for_many_values(shape):
    """Sums over even and odd numbers of values, where rounding errors could add up."""
    rng = np.random.default_rng(2)
    x = np.maximum(rng.normal(size=shape), 0).astype("float32")
    upstream = rng.normal(size=shape).astype("float32")
    low, high = np.float32(0.0), np.float32(2.5)
    options = {"gradient": "lsq", "count": 100.0}
    *_, dlow, dhigh = gradients(x, (low, high), upstream, in_function=True, **options)
    _, *expected = numpy_gradients(x, low, high, 8, False, "lsq", 100.0, upstream)
    np.testing.assert_allclose([dlow, dhigh], expected, rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("gradient", ["lsq", "clip", "none"])
@pytest.mark.parametrize("gain", [1.0, 0.25])
@pytest.mark.parametrize("in_function", [False, True])
def test_gradients_per_channel_match_the_numpy_twin(bits, gradient, gain, in_function):
    x, low, high = case(True, True, seed=bits)
    upstream = np.random.default_rng(9).normal(size=x.shape).astype("float32")
    options = {"bits": bits, "gradient": gradient, "gain": tf.constant(gain)}
    y, *found = gradients(
        x, (high,), upstream, fake_quant.fake_quant_per_channel, in_function, **options
    )
    plain, *_ = numpy_fake_quant(x, low, high, bits, True)
    np.testing.assert_allclose(y, gain * plain, rtol=1e-4, atol=1e-5)
    upstream = upstream * gain
    dx, dlow, dhigh = numpy_gradients(x, low, high, bits, True, gradient, 42.0, upstream)
    np.testing.assert_allclose(found[0], dx, rtol=1e-6)
    if gradient == "lsq" and bits < 8:  # LSQ counts the steps from 0 to the end, half of all.
        n = 2**bits - 2
        dlow, dhigh = (g * (n / 2) ** 1.5 / n**1.5 for g in (dlow, dhigh))
    if gradient == "none":
        assert len(found) == 1
    else:
        np.testing.assert_allclose(found[1], dhigh - dlow, rtol=2e-4, atol=2e-4)
    assert (found[0] == 0).any() and (found[0] != 0).any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_largest_weights_of_all_channels_are_inside(bits):
    """The range starts as the largest magnitude: those weights must not count as clipped."""
    high = np.random.default_rng(4).uniform(1e-3, 10.0, 20_000).astype("float32")
    x = np.stack([high, -high])
    y, dx, dhigh = gradients(
        x, (high,), np.ones_like(x), fake_quant.fake_quant_per_channel, bits=bits
    )
    np.testing.assert_allclose(y, x, rtol=1e-6)
    np.testing.assert_array_equal(dx, np.ones_like(x))
    np.testing.assert_allclose(dhigh, np.zeros_like(high), atol=1e-4)


@pytest.mark.parametrize("in_function", [False, True])
def test_none_gives_the_range_no_gradient(in_function):
    x, low, high = case(False, False)
    upstream = np.ones_like(x)
    _, *found = gradients(x, (low, high), upstream, in_function=in_function, gradient="none")
    assert len(found) == 1
    expected, *_ = numpy_gradients(x, low, high, 8, False, "none", 1.0, upstream)
    np.testing.assert_array_equal(found[0], expected)


def test_the_ends_themselves_are_inside():
    # Step 1/64 and no nudging: the ends -2 and 127/64 are codes.
    low, high, step = np.float32(-2.0), np.float32(127 / 64), np.float32(1 / 64)
    x = np.array([low - step, low, 0.0, high, high + step], "float32")
    upstream = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0], "float32")
    y, dx, dlow, dhigh = gradients(x, (low, high), upstream, gradient="clip")
    np.testing.assert_array_equal(y, [low, low, 0.0, high, high])
    np.testing.assert_array_equal(dx, [0.0, 10.0, 100.0, 1000.0, 0.0])
    assert (dlow, dhigh) == (1.0, 10000.0)


def test_lsq_by_hand():
    # Step 1/64; x lies a quarter of a step above a code, so y - x = -1/256.
    low, high = np.float32(-2.0), np.float32(127 / 64)
    x = np.array([1.0 + 1 / 256], "float32")
    _, dx, dlow, dhigh = gradients(x, (low, high), np.float32([3.0]), gradient="lsq", count=4.0)
    error = 3.0 * (-1 / 256) / (255 / 64)
    factor = 255 / math.sqrt(4 * 255)
    np.testing.assert_array_equal(dx, [3.0])
    np.testing.assert_allclose([dlow, dhigh], [-error * factor, error * factor], rtol=1e-5)


def test_lsq_is_the_gradient_of_the_step_by_finite_differences():
    """Esser et al. 2020, equation 3: with the codes held, dy/ds = code - x / s, times ds/dhigh."""
    high = np.float32(2.0)
    x = np.random.default_rng(3).uniform(-1.9, 1.9, 100).astype("float32")
    options = {"bits": 4, "narrow": True, "gradient": "lsq", "count": 1.0}
    _, _, dlow, dhigh = gradients(x, (-high, high), np.ones(100, "float32"), **options)
    step = 2.0 / 7
    per_step = np.sum(np.rint(x / step) - x / step)
    # The step is (high - low) / 14; both ends see it with opposite signs.
    np.testing.assert_allclose(dhigh / (14 * 14 / math.sqrt(14)), per_step / 14, rtol=1e-3)
    np.testing.assert_allclose(dlow, -dhigh, rtol=1e-5)


def test_no_values_at_all():
    y, dx, dlow, dhigh = gradients(
        np.zeros((0, 3), "float32"), np.float32([-1, 1]), np.zeros((0, 3), "float32")
    )
    assert y.shape == dx.shape == (0, 3)
    assert (dlow, dhigh) == (0.0, 0.0)


def ranges(count, seed=0):
    """Random ranges over many magnitudes, some with an end at 0."""
    rng = np.random.default_rng(seed)
    low = -np.exp(rng.uniform(-12, 12, count)).astype("float32")
    high = (np.exp(rng.uniform(-3, 3, count)) * -low).astype("float32")
    low[::7] = 0.0
    high[3::7] = 0.0
    return low, high


def assert_same_grid(found, expected):
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_array_equal(found.zero_point, expected.zero_point)
    assert (found.bits, found.narrow, found.axis) == (
        expected.bits,
        expected.narrow,
        expected.axis,
    )


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("in_function", [False, True])
def test_grid_from_range_is_that_of_grid_bit_for_bit(bits, in_function):
    low, high = ranges(20_000, seed=bits)
    high[5::7] = -low[5::7]  # The zero point of symmetric ranges is a tie, which goes up.

    def ends(low, high):
        grid = fake_quant.grid_from_range(low, high, bits, axis=0)
        return grid.scale, grid.zero_point

    scale, zero_point = (tf.function(ends) if in_function else ends)(low, high)
    assert scale.dtype == zero_point.dtype == tf.float32
    found = Grid(scale=scale, zero_point=zero_point, bits=bits, axis=0).numpy()
    assert_same_grid(found, Grid.from_range(low, high, bits=bits, axis=0))
    assert (found.zero_point[5::7] == 0).all()


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_grid_from_range_of_symmetric_ranges(bits):
    _, high = ranges(5_000, seed=bits)
    high = np.maximum(high, 1e-6)
    found = fake_quant.grid_from_range(-high, high, bits, narrow=True, axis=-1).numpy()
    assert_same_grid(found, Grid.from_range(-high, high, bits=bits, narrow=True, axis=-1))


def test_grid_from_range_of_narrow_ranges_that_are_not_symmetric():
    low, high = np.float32([-1.0, -3.0, 0.0]), np.float32([3.0, 1.0, 1.0])
    found = fake_quant.grid_from_range(low, high, 8, narrow=True, axis=-1).numpy()
    assert_same_grid(found, Grid.from_range(low, high, narrow=True, axis=-1))


def converted_grids(low, high, bits):
    """Scale and signed zero point that the converter writes for one fake-quant op a range."""

    @tf.function(input_signature=[tf.TensorSpec([1, 4])] * len(low))
    def serve(*xs):
        return {
            f"y{i:02}": tf.quantization.fake_quant_with_min_max_vars(x, *ends, num_bits=bits)
            for i, (x, *ends) in enumerate(zip(xs, low, high, strict=True))
        }

    module = tf.Module()
    module.serve = serve
    function = serve.get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert()
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    writers = {int(op.outputs[0]): op for op in graph.operators}
    found = []
    for end in sorted(model.signatureDefs[0].outputs, key=lambda end: end.name):
        codes = graph.tensors[int(writers[end.tensorIndex].inputs[0])]
        unsigned = codes.type in (schema.TensorType.UINT8, schema.TensorType.UINT16)
        offset = 2 ** (bits - 1) if unsigned else 0
        found.append((codes.quantization.scale[0], codes.quantization.zeroPoint[0] - offset))
    return np.array([f[0] for f in found], "float32"), np.array([f[1] for f in found])


@pytest.mark.parametrize("bits", [8, 16])
def test_grid_from_range_is_what_the_converter_writes(bits):
    low, high = ranges(40, seed=5)
    low[:4], high[:4] = [-1.0, 0.0, -2.0, -0.1], [1.0, 6.0, 127 / 64, 25.4]
    scale, zero_point = converted_grids(low, high, bits)
    grid = fake_quant.grid_from_range(low, high, bits, axis=0).numpy()
    np.testing.assert_array_equal(zero_point, grid.zero_point)
    np.testing.assert_array_equal(scale, grid.scale)


@pytest.mark.parametrize("in_function", [False, True])
def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other(in_function):
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = fake_quant.straight_through(x * x, tf.round(x))
            loss = tf.reduce_sum(y * [1.0, 10.0, 100.0])
        return y, tape.gradient(loss, x)

    x = tf.constant([0.4, 1.5, -2.6])
    y, dx = (tf.function(run) if in_function else run)(x)
    np.testing.assert_array_equal(y, [0.0, 2.0, -3.0])
    np.testing.assert_allclose(dx, [0.8, 30.0, -520.0], rtol=1e-6)


def test_straight_through_gives_the_exact_side_no_gradient():
    smooth, exact = tf.constant([1.0, 2.0]), tf.constant([5.0, 6.0])
    with tf.GradientTape() as tape:
        tape.watch([smooth, exact])
        y = fake_quant.straight_through(smooth, exact * 2.0)
    to_smooth, to_exact = tape.gradient(y, [smooth, exact])
    np.testing.assert_array_equal(to_smooth, [1.0, 1.0])
    assert to_exact is None
