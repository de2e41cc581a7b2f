"""The int16 kernels, and those on packed INT4 weights, against the interpreter."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import kernels, registry
from kerasq.export.tflite import content_of
from kerasq.grid import Grid
from kerasq.layers import Matmul
from kerasq.targets import X86_64
from tests.single_op import Op, Tensor, build, run
from tests.test_kernels import (
    REDUCED,
    assert_agrees,
    grid,
    integers,
    reduction,
    rescaled,
    simulate,
    tensors,
)

CODES = np.arange(-(2**15), 2**15).astype(np.int16).reshape(1, -1)
PROBABILITY = registry.ACTIVATIONS["softmax"].grids[16]


def wide(scale):
    return grid(scale, bits=16)


def tensor(shape, plain):
    return Tensor(shape, plain, f"int{plain.bits}")


def real_scale(rng, low=-16, high=-5):
    return np.float32(2.0 ** rng.uniform(low, high))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bits", [(8, 16), (16, 8), (16, 16)])
def test_requantize(bits, seed):
    rng = np.random.default_rng(seed)
    for _ in range(8):
        scale = real_scale(rng)
        ratio = 2.0 ** (rng.uniform(-3, 3) + bits[1] - bits[0])
        source = grid(scale * ratio, rng.integers(-128, 128) * (bits[0] == 8), bits=bits[0])
        out = grid(scale, rng.integers(-128, 128) * (bits[1] == 8), bits=bits[1])
        x = np.arange(source.qmin, source.qmax + 1).astype(source.dtype).reshape(1, -1)
        content = build(
            Op.QUANTIZE,
            2,
            [tensor(x.shape, source), tensor(x.shape, out)],
            kind="QuantizeOptions",
        )
        found = simulate("QUANTIZE", None, [x], [source], out)
        assert_agrees(found, content, x, at_most=0)


@pytest.mark.parametrize("seed", range(4))
def test_quantize_from_float(seed):
    rng = np.random.default_rng(seed)
    plain = wide(real_scale(rng))
    x = (rng.uniform(-40_000, 40_000, (1, 100_000)) * plain.scale).astype("float32")
    content = build(
        Op.QUANTIZE,
        2,
        [Tensor(x.shape, dtype="float32"), tensor(x.shape, plain)],
        kind="QuantizeOptions",
    )
    found = integers(kernels.quantize(x, tensors(plain)), plain)
    assert_agrees(found, content, x)
    np.testing.assert_array_equal(found, plain.quantize(x))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("name", "version"), [("ADD", 3), ("SUB", 5)])
def test_sums_and_differences(name, version, seed):
    rng = np.random.default_rng(seed)
    # Processors take 16 values at once, and what is left over one by one. One value in 60,000 tells
    # how inputs are rounded.
    shape = (1, 31, 127, 63 if seed % 2 else 3)
    a, b = (wide(real_scale(rng, -13, -8)) for _ in range(2))
    # Onto fine steps, how the sum is rounded shows more often.
    out = wide(real_scale(rng, -13, -8) * 2.0 ** -(seed // 4 * 6))
    b = a if name == "ADD" else b
    codes = [rng.integers(-(2**15), 2**15, shape).astype(np.int16) for _ in range(2)]
    if seed >= 4:  # Near 0, as sums of large codes are beyond such a grid.
        codes[1] = np.clip(rng.integers(-300, 300, shape) - codes[0], -32768, 32767)
        codes[1] = codes[1].astype(np.int16)
    content = build(
        getattr(Op, name),
        version,
        [tensor(shape, plain) for plain in (a, b, out)],
        kind=f"{name.capitalize()}Options",
        potScaleInt16=False,
    )
    assert_agrees(simulate(name, None, codes, [a, b], out), content, *codes)


@pytest.mark.parametrize("count", [5, 16, 37])
def test_sums_do_not_hang_on_places(count):
    rng = np.random.default_rng(0)
    ends = [keras.Input((count,)) for _ in range(2)]
    q = kerasq.quantize_model(keras.Model(ends, keras.layers.Add(name="sum")(ends)), "w8a16")
    wider, narrow = (rng.normal(size=(4000, count)).astype("float32") * k for k in (6, 0.01))
    # Sums of few units on inputs of thousands: their last bit is how the inputs were rounded.
    x = [wider, (wider * -0.999 + narrow).astype("float32")]
    kerasq.calibrate(q, [x], method="minmax")
    lite = kerasq.TFLiteModel(content_of(q, 1))
    scales = [float(end.grid.scale) for end in (*lite.inputs, *lite.outputs)]
    assert max(scales[:2]) > 20 * scales[2] and scales[0] != scales[1]
    np.testing.assert_array_equal(lite.predict(x), q.predict(x, verbose=0))


@pytest.mark.parametrize("seed", range(8))
def test_relu_onto_another_grid(seed):
    rng = np.random.default_rng(seed)
    source = wide(real_scale(rng))
    for ratio in (1.0, *(2.0 ** rng.uniform(-3, 3, 4))):
        out = wide(source.scale * np.float32(ratio))
        content = build(Op.RELU, 3, [tensor(CODES.shape, source), tensor(CODES.shape, out)])
        found = simulate("RELU", keras.layers.ReLU(), [CODES], [source], out)
        assert_agrees(found, content, CODES, at_most=0)


@pytest.mark.parametrize("pool", [(2, 2), (3, 3), (5, 6), (12, 12), (25, 40)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_average_pool(pool, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**15), 2**15, (1, 26, 41, 16)).astype(np.int16)
    x[..., 8:] = rng.integers(32_000, 2**15, (1, 26, 41, 8))  # sums far beyond 2^24
    layer = keras.layers.AveragePooling2D(pool, strides=2, padding=padding)
    plain = wide(0.01)
    content = build(
        Op.AVERAGE_POOL_2D,
        3,
        [tensor(x.shape, plain), tensor(layer.compute_output_shape(x.shape), plain)],
        kind="Pool2DOptions",
        padding=0 if padding == "same" else 1,
        strideH=2,
        strideW=2,
        filterHeight=pool[0],
        filterWidth=pool[1],
    )
    found = simulate("AVERAGE_POOL_2D", layer, [x], [plain], plain)
    assert_agrees(found, content, x, at_most=0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [1, 2, 10, 100])
def test_softmax(classes, seed):
    rng = np.random.default_rng(seed)
    spread = rng.uniform(100, 20_000, (500, 1))
    x = np.clip(rng.normal(0, spread, (500, classes)), -(2**15), 2**15 - 1).astype(np.int16)
    source = wide(2.0 ** rng.uniform(-16, -7))
    content = build(
        Op.SOFTMAX,
        3,
        [tensor(x.shape, source), tensor(x.shape, PROBABILITY)],
        kind="SoftmaxOptions",
        beta=1.0,
    )
    found = simulate("SOFTMAX", keras.layers.Softmax(), [x], [source], PROBABILITY)
    assert_agrees(found, content, x, at_most=0)


@pytest.mark.parametrize("operator", ["LOGISTIC", "TANH"])
@pytest.mark.parametrize("seed", range(30))
def test_sigmoid_and_tanh(operator, seed):
    source = wide(2.0 ** np.random.default_rng(seed).uniform(-18, -6))
    operands = [tensor(CODES.shape, source), tensor(CODES.shape, PROBABILITY)]
    content = build(getattr(Op, operator), 3, operands)
    found = simulate(operator, None, [CODES], [source], PROBABILITY)
    assert_agrees(found, content, CODES, at_most=0)


@pytest.mark.parametrize("slope", [0.1, 0.3, 1.7, -0.2])
def test_leaky_relu(slope):
    rng = np.random.default_rng(0)
    for _ in range(4):
        source = wide(real_scale(rng))
        out = wide(source.scale * 2.0 ** rng.uniform(-2, 3))
        operands = [tensor(CODES.shape, source), tensor(CODES.shape, out)]
        content = build(Op.LEAKY_RELU, 2, operands, kind="LeakyReluOptions", alpha=slope)
        layer = keras.layers.LeakyReLU(0.5)
        layer.negative_slope = slope  # Keras refuses negative ones.
        found = simulate("LEAKY_RELU", layer, [CODES], [source], out)
        assert_agrees(found, content, CODES, at_most=1)


def weighted_case(name, shape, channel_axis, x, bits, weight_bits, seed):
    """A flatbuffer with one kernel; its accumulators' function, grids and weights."""
    rng = np.random.default_rng(seed)
    channels = shape[channel_axis]
    scale = (2.0 ** rng.uniform(-13, -3, channels)).astype("float32")
    largest = 2 ** (weight_bits - 1) - 1
    codes = rng.integers(-largest, largest + 1, shape).astype(np.int8)
    weights = Grid(
        scale=scale,
        zero_point=np.zeros(channels, np.int32),
        bits=weight_bits,
        narrow=True,
        axis=channel_axis,
    )
    limit = 30_000 if bits == 8 else 10_000_000
    bias = rng.integers(-limit, limit, channels)
    source = grid(real_scale(rng), rng.integers(-128, 128) * (bits == 8), bits=bits)
    packed = X86_64.packs(name, weight_bits, bits)
    operands = [
        tensor(x.shape, source),
        Tensor(shape, weights, "int4" if packed else "int8", codes),
        Tensor(
            bias.shape,
            Grid(scale=source.scale * scale, zero_point=np.zeros(channels, int), axis=0),
            "int32" if bits == 8 else "int64",
            bias,
        ),
    ]
    return operands, source, weights, codes.astype(np.int64), bias


def fitting(total, source, weights, bits, seed):
    """An output grid that most of the accumulators fit on."""
    largest = np.percentile(np.abs(total * (source.scale * weights.scale)), 99)
    zero_point = 0 if bits == 16 else np.random.default_rng(seed).integers(-128, 128)
    return grid(largest / 2.0 ** (bits - 1), zero_point, bits=bits)


WIDTHS = [(16, 8), (16, 4), (8, 4)]


def random_codes(rng, shape, bits):
    return rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(f"int{bits}")


@pytest.mark.parametrize(("bits", "weight_bits"), WIDTHS)
@pytest.mark.parametrize("inputs", [3, 16, 33])
@pytest.mark.parametrize("seed", range(3))
def test_conv_2d(bits, weight_bits, inputs, seed):
    x = random_codes(np.random.default_rng(seed), (1, 12, 12, inputs), bits)
    operands, source, weights, w, bias = weighted_case(
        "CONV_2D", (24, 3, 3, inputs), 0, x, bits, weight_bits, seed
    )
    windows = np.lib.stride_tricks.sliding_window_view(
        x.astype(np.int64) - source.zero_point, (3, 3), axis=(1, 2)
    )
    total = np.einsum("nhwcij,oijc->nhwo", windows, w) + bias
    out = fitting(total, source, weights, bits, seed)
    content = build(
        Op.CONV_2D,
        X86_64.version("CONV_2D", weight_bits, bits),
        [*operands, tensor(total.shape, out)],
        kind="Conv2DOptions",
        padding=1,
        strideW=1,
        strideH=1,
    )
    found = rescaled(total, source, weights, out, "CONV_2D")
    assert_agrees(found, content, x)


@pytest.mark.parametrize(("bits", "weight_bits"), WIDTHS)
@pytest.mark.parametrize("channels", [1, 7, 16, 29])
@pytest.mark.parametrize("seed", range(3))
def test_depthwise_conv_2d(bits, weight_bits, channels, seed):
    x = random_codes(np.random.default_rng(seed), (1, 12, 12, channels), bits)
    operands, source, weights, w, bias = weighted_case(
        "DEPTHWISE_CONV_2D", (1, 3, 3, channels), 3, x, bits, weight_bits, seed
    )
    windows = np.lib.stride_tricks.sliding_window_view(
        x.astype(np.int64) - source.zero_point, (3, 3), axis=(1, 2)
    )
    total = np.einsum("nhwcij,ijc->nhwc", windows, w[0]) + bias
    out = fitting(total, source, weights, bits, seed)
    content = build(
        Op.DEPTHWISE_CONV_2D,
        X86_64.version("DEPTHWISE_CONV_2D", weight_bits, bits),
        [*operands, tensor(total.shape, out)],
        kind="DepthwiseConv2DOptions",
        padding=1,
        strideW=1,
        strideH=1,
        depthMultiplier=1,
    )
    found = rescaled(total, source, weights, out, "DEPTHWISE_CONV_2D")
    assert_agrees(found, content, x)


@pytest.mark.parametrize(("bits", "weight_bits"), WIDTHS)
@pytest.mark.parametrize("inputs", [1, 33, 64, 700])
@pytest.mark.parametrize("seed", range(3))
def test_fully_connected(bits, weight_bits, inputs, seed):
    x = random_codes(np.random.default_rng(seed), (64, inputs), bits)
    operands, source, weights, w, bias = weighted_case(
        "FULLY_CONNECTED", (20, inputs), 0, x, bits, weight_bits, seed
    )
    total = (x.astype(np.int64) - source.zero_point) @ w.T + bias
    out = fitting(total, source, weights, bits, seed)
    content = build(
        Op.FULLY_CONNECTED,
        X86_64.version("FULLY_CONNECTED", weight_bits, bits),
        [*operands, tensor(total.shape, out)],
        kind="FullyConnectedOptions",
    )
    found = rescaled(total, source, weights, out, "FULLY_CONNECTED", np.zeros((inputs, 20)))
    assert_agrees(found, content, x)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("is_one", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_fully_connected_at_ties(seed, is_one, packed):
    """Sums at ties, and nearer to ties than a multiplier of 31 bits can tell; of one scale, too."""
    rng, count = np.random.default_rng(seed), 4000
    size = () if is_one else (count,)
    scale = np.float32(2.0 ** (rng.uniform(-10, -3, size) if seed else np.full(size, -7.0)))
    source = wide(np.float32(2.0**-5))
    largest = source.scale * np.max(scale)
    out = wide(np.float32(largest * 2.0 ** (rng.uniform(17, 18) if seed else 17)))
    multiplier = np.float64(source.scale) * scale.astype(np.float64) / np.float64(out.scale)
    ties = rng.integers(-32_000, 32_000, count) + 0.5
    # Inputs are 0: a bias is a sum that can be chosen.
    bias = np.rint(ties / multiplier).astype(np.int64)
    x, axis = np.zeros((1, 2), np.int16), None if is_one else 0
    zero_point, bits = np.zeros(size, np.int32), 4 if packed else 8
    weights = Grid(scale=scale, zero_point=zero_point, bits=bits, narrow=True, axis=axis)
    steps = Grid(scale=source.scale * scale, zero_point=np.zeros(size, np.int64), axis=axis)
    operands = [
        tensor(x.shape, source),
        Tensor((count, 2), weights, "int4" if packed else "int8", np.ones((count, 2), np.int8)),
        Tensor(bias.shape, steps, "int64", bias),
        tensor((1, count), out),
    ]
    version = X86_64.version("FULLY_CONNECTED", weights.bits, 16)
    content = build(Op.FULLY_CONNECTED, version, operands, kind="FullyConnectedOptions")
    found = rescaled(bias[None], source, weights, out, "FULLY_CONNECTED", np.zeros((2, count)))
    assert_agrees(found, content, x, at_most=0)
    if not seed:  # Exactly at ties.
        np.testing.assert_array_equal(found[0], np.trunc(ties + np.sign(ties) / 2))


@pytest.mark.parametrize("ratio", [2.0**-31, 2.0**-32.5, 2.0**-40, 2.0**-60])
def test_multipliers_below_all_bits_are_0(ratio):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-(2**15), 2**15, shape) for shape in ((1, 5, 7), (1, 7, 5)))
    codes, out = [x.astype(np.int16) for x in (a, b)], wide(0.5)
    grids = [wide(2.0**-8), wide(2.0**7 * ratio)]
    operands = [tensor(x.shape, g) for x, g in zip((*codes, a @ b), (*grids, out), strict=True)]
    options = {"adjX": False, "adjY": False, "asymmetricQuantizeInputs": False}
    content = build(Op.BATCH_MATMUL, 4, operands, kind="BatchMatMulOptions", **options)
    found = simulate("BATCH_MATMUL", Matmul(), codes, grids, out)
    np.testing.assert_array_equal(found, run(content, *codes))


def test_accumulate_is_exact_for_16_bits():
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**15), 2**15, (8, 300))
    w = rng.integers(-127, 128, (300, 20))
    found = kernels.accumulate(
        lambda codes: codes @ tf.constant(w, tf.float32), tf.constant(x, tf.float32), wide(1.0)
    )
    assert np.abs(x @ w).max() > 2**26  # float32 would have to round
    np.testing.assert_array_equal(found, x @ w)


@pytest.mark.parametrize(("shape", "axes"), REDUCED)
@pytest.mark.parametrize(("name", "version"), [("SUM", 2), ("MEAN", 3)])
def test_reductions_along_any_axes(name, version, shape, axes):
    rng = np.random.default_rng(len(axes))
    count = np.prod([shape[i] for i in axes])
    for i, ratio in enumerate(2.0 ** rng.uniform(-4, 4, 8)):
        out = wide(real_scale(rng))
        source = wide(ratio * out.scale / (np.sqrt(count) if name == "SUM" else 1))
        x = rng.integers(-(2**15), 2**15, shape).astype(np.int16)
        layer, content = reduction(name, shape, axes, i % 2 == 0, source, out, version)
        found = simulate(name, layer, [x], [source], out)
        np.testing.assert_array_equal(found, run(content, x))


def test_sum_of_more_than_24_bits():
    """The sum is rounded to float32 before it is scaled."""
    x = np.random.default_rng(0).integers(2**14, 2**15, (3, 5000)).astype(np.int16)
    source, out = wide(1.0), wide(3000.001)
    layer, content = reduction("SUM", x.shape, [1], False, source, out)
    found = simulate("SUM", layer, [x], [source], out)
    np.testing.assert_array_equal(found, run(content, x))
    assert x.sum(1).min() > 2**24


@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.7, 100.0, 255.9])
def test_products_far_beyond_the_range_wrap_around(ratio):
    rng = np.random.default_rng(int(ratio))
    codes = [rng.integers(-(2**15), 2**15, (1, 4000)).astype(np.int16) for _ in range(2)]
    codes[0][0, :500] //= 256
    out = wide(2.0**-8)
    grids = [wide(2.0**-8), wide(ratio)]
    operands = [tensor(x.shape, g) for x, g in zip((*codes, codes[0]), (*grids, out), strict=True)]
    found = simulate("MUL", keras.layers.Multiply(), codes, grids, out)
    content = build(Op.MUL, 4, operands, kind="MulOptions")
    np.testing.assert_array_equal(found, run(content, *codes))
    # As numbers of 32 bits do, some change their sign.
    signs = np.sign(codes[0].astype(int) * codes[1])
    assert np.any(np.sign(found) * signs < 0) == (ratio >= 2.0)
