"""Every function of `kerasq.kernels` against the interpreter, on models of one operator."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasq import kernels, layers, registry
from kerasq.grid import Grid
from kerasq.kernels.int8 import equal_weights
from kerasq.prepare import operations
from kerasq.targets import LITERT, TFLM, X86_64
from tests.single_op import Op, Tensor, build, run

CODES = np.arange(-128, 128, dtype=np.int8)
PROBABILITY = Grid(scale=np.float32(1 / 256), zero_point=np.int32(-128))


def grid(scale, zero_point=0, axis=None, bits=8):
    return Grid(scale=np.float32(scale), zero_point=np.int32(zero_point), axis=axis, bits=bits)


def tensors(plain):
    """The grid as the wrappers hand it to the kernels."""
    return dataclasses.replace(
        plain, scale=tf.constant(plain.scale), zero_point=tf.constant(plain.zero_point, tf.float32)
    )


def simulate(operator, layer, codes, grids, out, target=LITERT):
    """What a target says that an operator does to codes."""
    centred = [
        tf.constant(code - np.float32(grid.zero_point), tf.float32)
        for code, grid in zip(codes, grids, strict=True)
    ]
    found = target.run(operator, layer, centred, [tensors(g) for g in grids], tensors(out))
    return integers(found, out)


def integers(centred, out):
    values = np.asarray(centred) + out.zero_point
    np.testing.assert_array_equal(values, np.rint(values))
    assert values.min() >= out.qmin and values.max() <= out.qmax
    return values.astype(out.dtype)


def assert_agrees(found, content, *inputs, at_most=1):
    """Bit for bit on the default kernels, and within one on the reference ones."""
    np.testing.assert_array_equal(found, run(content, *inputs))
    reference = run(content, *inputs, kernels="reference")
    assert np.abs(found.astype(int) - reference).max() <= at_most


def ratios(lowest, highest, count, seed=0):
    """Powers of two from end to end, and numbers between them."""
    rng = np.random.default_rng(seed)
    between = 2.0 ** rng.uniform(lowest, highest, count)
    return [*(2.0 ** np.arange(lowest, highest + 1)), *between]


def test_centre_undoes_the_scale_and_clip_keeps_to_the_codes():
    rng = np.random.default_rng(0)
    for scale in 2.0 ** rng.uniform(-20, 20, 50):
        plain = grid(scale, rng.integers(-128, 128))
        centred = np.arange(-400, 400, dtype="float32")
        np.testing.assert_array_equal(kernels.centre(centred * plain.scale, plain), centred)
        expected = np.clip(centred + plain.zero_point, -128, 127) - plain.zero_point
        np.testing.assert_array_equal(kernels.clip(centred, tensors(plain)), expected)


@pytest.mark.parametrize("seed", range(4))
def test_quantize_from_float(seed):
    rng = np.random.default_rng(seed)
    for scale in 2.0 ** rng.uniform(-12, 6, 20):
        plain = grid(scale, rng.integers(-128, 128))
        x = (rng.uniform(-400, 400, (1, 4096)) * plain.scale).astype("float32")
        content = build(
            Op.QUANTIZE,
            1,
            [Tensor(x.shape, dtype="float32"), Tensor(x.shape, plain)],
            kind="QuantizeOptions",
        )
        found = integers(kernels.quantize(x, tensors(plain)), plain)
        assert_agrees(found, content, x)
        np.testing.assert_array_equal(found, plain.quantize(x))


@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**-7])
def test_quantize_from_float_at_ties(scale):
    plain = grid(scale, 1)
    x = ((np.arange(-300, 300, dtype="float32") + 0.5) * scale).reshape(1, -1)
    content = build(
        Op.QUANTIZE,
        1,
        [Tensor(x.shape, dtype="float32"), Tensor(x.shape, plain)],
        kind="QuantizeOptions",
    )
    assert_agrees(integers(kernels.quantize(x, tensors(plain)), plain), content, x)


@pytest.mark.parametrize(("bits", "code"), [(8, 127), (16, -(2**15))])
@pytest.mark.parametrize("count", [1, 24])
def test_quantize_from_nan(bits, code, count):
    plain, x = grid(0.5, 3 if bits == 8 else 0, bits=bits), np.full((1, count), np.nan, np.float32)
    ends = [Tensor(x.shape, dtype="float32"), Tensor(x.shape, plain, f"int{bits}")]
    content = build(Op.QUANTIZE, bits // 8, ends, kind="QuantizeOptions")
    found = integers(kernels.quantize(tf.constant(x), tensors(plain)), plain)
    np.testing.assert_array_equal(found, run(content, x))
    assert (found == code).all()


@pytest.mark.parametrize("ratio", ratios(-8, 7, 60))
def test_requantize(ratio):
    rng = np.random.default_rng(int(ratio * 1e6))
    codes = CODES.reshape(1, -1)
    for _ in range(3):
        scale = np.float32(2.0 ** rng.uniform(-12, 4))
        source = grid(scale * np.float32(ratio), rng.integers(-128, 128))
        out = grid(scale, rng.integers(-128, 128))
        content = build(
            Op.QUANTIZE,
            2,
            [Tensor(codes.shape, source), Tensor(codes.shape, out)],
            kind="QuantizeOptions",
        )
        found = simulate("QUANTIZE", None, [codes], [source], out)
        assert_agrees(found, content, codes)


def every_pair():
    """Every pair of codes, of two tensors."""
    pairs = np.meshgrid(CODES, CODES, indexing="ij")
    return [np.ascontiguousarray(x.reshape(1, 64, 64, 16)) for x in pairs]


def add_case(ratio_a, ratio_b, seed):
    rng = np.random.default_rng(seed)
    scale = np.float32(2.0 ** rng.uniform(-10, 4))
    a, b = (
        grid(scale * np.float32(ratio), rng.integers(-128, 128)) for ratio in (ratio_a, ratio_b)
    )
    return a, b, grid(scale, rng.integers(-128, 128))


ADD_EXTREMES = [
    (2.0**-10, 2.0**-10),
    (2.0**-10, 2.0**7),
    (2.0**7, 2.0**-10),
    (2.0**7, 2.0**7),
    (2.0**-10, 1.0),
    (1.0, 1.0),
    (0.5, 0.5),
    (1.9999999, 1.0),
]


@pytest.mark.parametrize(
    ("ratio_a", "ratio_b"),
    ADD_EXTREMES + list(zip(ratios(-10, 7, 40, 1)[18:], ratios(-10, 7, 40, 2)[18:], strict=True)),
)
def test_add(ratio_a, ratio_b):
    codes = every_pair()
    a, b, out = add_case(ratio_a, ratio_b, seed=int(ratio_a * 1e5))
    shape = codes[0].shape
    content = build(
        Op.ADD,
        2,
        [Tensor(shape, a), Tensor(shape, b), Tensor(shape, out)],
        kind="AddOptions",
        potScaleInt16=False,
    )
    assert_agrees(simulate("ADD", None, codes, [a, b], out), content, *codes)


@pytest.mark.parametrize("small", [0.9 * 2.0**-10, 1e-4, 1e-9])
@pytest.mark.parametrize("ratio", [0.013, 0.5, 1.7, 126.9])
@pytest.mark.parametrize(
    ("operator", "version", "kind"), [("ADD", 2, "AddOptions"), ("SUB", 3, "SubOptions")]
)
def test_sums_of_what_is_almost_constant(operator, version, kind, ratio, small):
    # Which XNNPACK leaves to LiteRT's own kernels, as of a branch that is dead.
    codes = every_pair()
    for pair in ((ratio, small), (small, ratio)):
        a, b, out = add_case(*pair, seed=int(ratio * 1e5))
        tensors = [Tensor(codes[0].shape, plain) for plain in (a, b, out)]
        content = build(getattr(Op, operator), version, tensors, kind=kind, potScaleInt16=False)
        found = simulate(operator, None, codes, [a, b], out).astype(int)
        # In one of a million values both roundings of a sum are at a tie.
        off = np.abs(found - run(content, *codes))
        assert off.max() <= 1
        assert np.mean(off > 0) < 2e-5


def test_concatenate_requantizes_what_lies_on_another_grid():
    rng = np.random.default_rng(0)
    shape, layer = (1, 4, 4, 16), keras.layers.Concatenate()
    out = grid(0.05, -3)
    grids = [grid(0.031, 17), grid(0.05, -3), grid(0.2, -128)]
    codes = [rng.integers(-128, 128, shape).astype(np.int8) for _ in grids]
    parts = [
        run(
            build(
                Op.QUANTIZE, 2, [Tensor(shape, source), Tensor(shape, out)], kind="QuantizeOptions"
            ),
            code,
        )
        for code, source in zip(codes, grids, strict=True)
    ]
    content = build(
        Op.CONCATENATION,
        2,
        [*(Tensor(shape, out) for _ in parts), Tensor((1, 4, 4, 48), out)],
        kind="ConcatenationOptions",
        axis=3,
    )
    found = simulate("CONCATENATION", layer, codes, grids, out)
    np.testing.assert_array_equal(parts[1], codes[1])
    assert_agrees(found, content, *parts)


def weights_case(shape, channel_axis, seed, per_channel=True):
    """Codes of a kernel with scales that differ a thousandfold, and a bias."""
    rng = np.random.default_rng(seed)
    channels = shape[channel_axis]
    scale = 2.0 ** rng.uniform(-13, -3, channels if per_channel else 1)
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    weights = Grid(
        scale=scale.astype("float32"),
        zero_point=np.zeros(scale.shape, np.int32),
        narrow=True,
        axis=channel_axis,
    )
    return codes, weights, rng.integers(-30_000, 30_000, channels).astype(np.int32)


def rescaled(total, source, weights, out, operator="CONV_2D", codes=None):
    # Where there is one, that of packed weights: LiteRT's own rounds as this processor does.
    found = X86_64.accumulator_kernel(operator, source.bits, weights.bits)(
        tf.constant(total, tf.float64 if source.bits > 8 else tf.float32),
        tensors(source),
        kernels.IntegerWeights(codes, weights, None),
        tensors(out),
    )
    return integers(found, out)


def weighted(code, version, source, x, weights, w, bias, out, y, **options):
    """A flatbuffer of a convolution or fully connected operator."""
    bias_grid = Grid(
        scale=source.scale * weights.scale, zero_point=np.zeros(weights.scale.shape, int), axis=0
    )
    operands = [
        Tensor(x.shape, source),
        Tensor(w.shape, weights, values=w),
        Tensor(bias.shape, bias_grid, "int32", bias),
        Tensor(y, out),
    ]
    return build(code, version, operands, **options)


@pytest.mark.parametrize("seed", range(6))
def test_rescale_as_conv_2d(seed):
    rng = np.random.default_rng(seed)
    w, weights, bias = weights_case((24, 3, 3, 16), 0, seed)
    x = rng.integers(-128, 128, (1, 12, 12, 16)).astype(np.int8)
    source = grid(2.0 ** rng.uniform(-7, 0), rng.integers(-128, 128))
    out = grid(source.scale * 2.0 ** rng.uniform(-1, 4), rng.integers(-128, 128))
    content = weighted(
        Op.CONV_2D,
        3,
        source,
        x,
        weights,
        w,
        bias,
        out,
        (1, 10, 10, 24),
        kind="Conv2DOptions",
        padding=1,
        strideW=1,
        strideH=1,
    )
    windows = np.lib.stride_tricks.sliding_window_view(
        x.astype(np.int64) - source.zero_point, (3, 3), axis=(1, 2)
    )
    total = np.einsum("nhwcij,oijc->nhwo", windows, w.astype(np.int64)) + bias
    assert np.abs(total).max() < 2**24
    assert_agrees(rescaled(total, source, weights, out), content, x)


@pytest.mark.parametrize("seed", range(6))
def test_rescale_as_depthwise_conv_2d(seed):
    rng = np.random.default_rng(seed)
    w, weights, bias = weights_case((1, 3, 3, 32), 3, seed)
    x = rng.integers(-128, 128, (1, 12, 12, 32)).astype(np.int8)
    source = grid(2.0 ** rng.uniform(-7, 0), rng.integers(-128, 128))
    out = grid(source.scale * 2.0 ** rng.uniform(-3, 2), rng.integers(-128, 128))
    content = weighted(
        Op.DEPTHWISE_CONV_2D,
        3,
        source,
        x,
        weights,
        w,
        bias,
        out,
        (1, 10, 10, 32),
        kind="DepthwiseConv2DOptions",
        padding=1,
        strideW=1,
        strideH=1,
        depthMultiplier=1,
    )
    windows = np.lib.stride_tricks.sliding_window_view(
        x.astype(np.int64) - source.zero_point, (3, 3), axis=(1, 2)
    )
    total = np.einsum("nhwcij,ijc->nhwc", windows, w[0].astype(np.int64)) + bias
    assert_agrees(rescaled(total, source, weights, out), content, x)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_rescale_as_fully_connected(seed, per_channel):
    rng = np.random.default_rng(seed)
    w, weights, bias = weights_case((20, 100), 0, seed, per_channel)
    x = rng.integers(-128, 128, (64, 100)).astype(np.int8)
    source = grid(2.0 ** rng.uniform(-7, 0), rng.integers(-128, 128))
    out = grid(source.scale * 2.0 ** rng.uniform(-1, 4), rng.integers(-128, 128))
    content = weighted(
        Op.FULLY_CONNECTED,
        12 if per_channel else 4,
        source,
        x,
        weights,
        w,
        bias,
        out,
        (64, 20),
        kind="FullyConnectedOptions",
    )
    total = (x.astype(np.int64) - source.zero_point) @ w.T.astype(np.int64) + bias
    assert_agrees(rescaled(total, source, weights, out), content, x)


def test_rescale_rounds_ties_to_even_as_the_kernel_does():
    # One weight of code 1 and scale 1/2 against an output scale of 1: every odd code is a tie.
    x, source, out = CODES.reshape(256, 1), grid(1.0, 0), grid(1.0, 3)
    weights = Grid(scale=np.float32([0.5]), zero_point=np.int32([0]), narrow=True, axis=0)
    w, bias = np.ones((1, 1), np.int8), np.zeros(1, np.int32)
    content = weighted(
        Op.FULLY_CONNECTED,
        4,
        source,
        x,
        weights,
        w,
        bias,
        out,
        (256, 1),
        kind="FullyConnectedOptions",
    )
    found = rescaled(x.astype(np.int64), source, weights, out)
    np.testing.assert_array_equal(found, np.rint(x / 2) + 3)
    assert_agrees(found, content, x)


POOLS = [(2, 2), (3, 3), (2, 3), (3, 2), (4, 4), (5, 6), (7, 7), (3, 4), (8, 8), (1, 2), (6, 7)]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, 3])
def test_average_pool(pool, padding, strides):
    rng = np.random.default_rng(pool[0])
    layer = keras.layers.AveragePooling2D(pool, strides=strides, padding=padding)
    x = rng.integers(-128, 128, (1, 13, 14, 24)).astype(np.int8)
    # Small values, so that many means are ties.
    x[..., 12:] = rng.integers(-3, 4, (1, 13, 14, 12))
    y = tuple(layer.compute_output_shape(x.shape))
    for zero_point in (-128, 0, 5, 127):
        plain = grid(0.1, zero_point)
        content = build(
            Op.AVERAGE_POOL_2D,
            2,
            [Tensor(x.shape, plain), Tensor(y, plain)],
            kind="Pool2DOptions",
            padding=0 if padding == "same" else 1,
            strideH=strides,
            strideW=strides,
            filterHeight=pool[0],
            filterWidth=pool[1],
        )
        found = simulate("AVERAGE_POOL_2D", layer, [x], [plain], plain, TFLM)
        assert_agrees(found, content, x)
        if weights := equal_weights(pool, padding):
            content = by_equal_weights(x, plain, layer, weights)
        found = simulate("AVERAGE_POOL_2D", layer, [x], [plain], plain)
        assert_agrees(found, content, x)


def by_equal_weights(x, plain, layer, weights):
    """A depthwise convolution that averages windows."""
    ones = np.ones((1, *layer.pool_size, x.shape[-1]), np.int8)
    zeros, steps = np.zeros(x.shape[-1], np.int32), grid(plain.scale * weights.scale)
    return build(
        Op.DEPTHWISE_CONV_2D,
        3,
        [
            Tensor(x.shape, plain),
            Tensor(ones.shape, weights, values=ones),
            Tensor(zeros.shape, steps, "int32", values=zeros),
            Tensor(tuple(layer.compute_output_shape(x.shape)), plain),
        ],
        kind="DepthwiseConv2DOptions",
        padding=1,
        strideH=layer.strides[0],
        strideW=layer.strides[1],
        depthMultiplier=1,
        dilationHFactor=1,
        dilationWFactor=1,
    )


def test_average_pool_ties_go_away_from_zero():
    # Pairs with the sum k, for every k: odd sums are ties of the codes, not of the real values.
    pairs = np.stack([np.arange(-60, 60), np.zeros(120)], -1).reshape(1, 120, 2, 1)
    layer = keras.layers.AveragePooling2D((1, 2))
    for zero_point in (-128, -7, 0):
        plain = grid(0.1, zero_point)
        codes = [pairs.astype(np.int8)]
        found = simulate("AVERAGE_POOL_2D", layer, codes, [plain], plain, TFLM)
        k = np.arange(-60, 60)
        np.testing.assert_array_equal(found.ravel(), np.sign(k) * ((np.abs(k) + 1) // 2))


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (25, 5), (49, 10), (12, 12)])
def test_average_pool_of_the_whole_image(size):
    rng = np.random.default_rng(size[0])
    x = rng.integers(-128, 128, (1, *size, 512)).astype(np.int8)
    layer, plain = keras.layers.AveragePooling2D(size), grid(0.02, -128)
    content = build(
        Op.AVERAGE_POOL_2D,
        2,
        [Tensor(x.shape, plain), Tensor((1, 1, 1, 512), plain)],
        kind="Pool2DOptions",
        padding=1,
        strideH=size[0],
        strideW=size[1],
        filterHeight=size[0],
        filterWidth=size[1],
    )
    assert_agrees(simulate("AVERAGE_POOL_2D", layer, [x], [plain], plain), content, x)


def with_sums(sums, size):
    """Images whose codes, less the zero point, have these sums: (1, *size, len(sums))."""
    count = size[0] * size[1]
    spread = np.arange(count)[:, None] < np.asarray(sums) % count
    return (np.asarray(sums) // count + spread).reshape(1, *size, -1)


@pytest.mark.parametrize("size", [(4, 4), (3, 3), (8, 8), (7, 5), (25, 5)])
@pytest.mark.parametrize("seed", range(8))
def test_mean_near_ties(size, seed):
    """What GlobalAveragePooling2D becomes."""
    rng, count = np.random.default_rng(seed), size[0] * size[1]
    zero_points = (-128, int(rng.integers(-100, 100)))[:: 1 if seed % 2 else -1]
    sums = np.arange(max(-100, -128 - zero_points[0]), min(100, 127 - zero_points[0])) * count
    sums = np.concatenate([sums, sums + rng.integers(0, count, len(sums))])
    tie = (rng.integers(0, 60) + 0.5) * count / rng.choice(sums[sums > 0])
    scale = np.float32(rng.uniform(0.005, 0.05))
    # The ratio of the scales that takes one of the sums to a tie, to the last bits of it.
    for error in rng.normal(0.0, 1e-7, 6):
        source = grid(tie * (1 + error) * scale, zero_points[0])
        out = grid(scale, zero_points[1])
        x = (with_sums(sums, size) + zero_points[0]).astype(np.int8)
        content = build(
            Op.MEAN,
            2,
            [
                Tensor(x.shape, source),
                Tensor((2,), dtype="int32", values=np.array([1, 2])),
                Tensor((1, len(sums)), out),
            ],
            kind="ReducerOptions",
            keepDims=False,
        )
        layer = keras.layers.GlobalAveragePooling2D()
        assert_agrees(simulate("MEAN", layer, [x], [source], out), content, x)


# Shapes, and the axes that are reduced: the last, the middle, the first ones, all of them.
REDUCED = [
    ((3, 40), [1]),
    ((2, 5, 7), [2]),
    ((2, 30, 7), [1]),
    ((2, 5, 7), [1, 2]),
    ((2, 4, 5, 6), [1, 2]),
    ((2, 4, 5, 6), [2, 3]),
    ((2, 4, 5, 6), [1, 3]),
    ((2, 3, 4, 5, 6), [2, 4]),
]


def reduction(name, shape, axes, keepdims, source, out, version=2):
    """The layer of a reduction, and the model of its operator."""
    layer = getattr(layers, name.title())(axes, keepdims)
    dtype, to = (f"int{found.bits}" for found in (source, out))
    operands = [
        Tensor(shape, source, dtype),
        Tensor((len(axes),), dtype="int32", values=np.array(axes)),
        Tensor(layer.compute_output_shape(shape), out, to),
    ]
    options = {"kind": "ReducerOptions", "keepDims": keepdims}
    return layer, build(getattr(Op, name), version, operands, **options)


@pytest.mark.parametrize(("shape", "axes"), REDUCED)
@pytest.mark.parametrize("name", ["SUM", "MEAN"])
def test_reductions_along_any_axes(name, shape, axes):
    rng = np.random.default_rng(len(axes))
    count = np.prod([shape[i] for i in axes])
    for i, ratio in enumerate(2.0 ** rng.uniform(-4, 4, 8)):
        out = grid(2.0 ** rng.uniform(-10, 4), rng.integers(-128, 128))
        # Sums of so many codes that are not correlated.
        scale = ratio * out.scale / (np.sqrt(count) if name == "SUM" else 1)
        source = grid(scale, rng.integers(-128, 128))
        x = rng.integers(-128, 128, shape).astype(np.int8)
        layer, content = reduction(name, shape, axes, i % 2 == 0, source, out)
        found = simulate(name, layer, [x], [source], out)
        np.testing.assert_array_equal(found, run(content, x))


@pytest.mark.parametrize("seed", range(6))
def test_sum_near_ties(seed):
    """Where the last bits of the ratio of the scales decide."""
    rng = np.random.default_rng(seed)
    zero_points = (-128, int(rng.integers(-100, 100)))[:: 1 if seed % 2 else -1]
    x = rng.integers(-128, 128, (500, 2 + seed)).astype(np.int8)
    sums = (x.astype(int) - zero_points[0]).sum(1)
    tie = (rng.integers(0, 60) + 0.5) / rng.choice(sums[sums > 0])
    scale = np.float32(rng.uniform(0.005, 0.05))
    for error in rng.normal(0.0, 1e-7, 6):
        source, out = grid(tie * (1 + error) * scale, zero_points[0]), grid(scale, zero_points[1])
        layer, content = reduction("SUM", x.shape, [1], False, source, out)
        found = simulate("SUM", layer, [x], [source], out)
        np.testing.assert_array_equal(found, run(content, x))


@pytest.mark.parametrize("scale", [0.001, 0.01, 0.05, 0.1, 0.2, 0.37, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", [1, 2, 10, 100])
def test_softmax(scale, classes):
    rng = np.random.default_rng(classes)
    spread = rng.uniform(5, 80, (1000, 1))
    x = np.clip(rng.normal(0, spread, (1000, classes)), -128, 127).astype(np.int8)
    source = grid(scale, 10)
    content = build(
        Op.SOFTMAX,
        2,
        [Tensor(x.shape, source), Tensor(x.shape, PROBABILITY)],
        kind="SoftmaxOptions",
        beta=1.0,
    )
    layer = keras.layers.Softmax()
    assert_agrees(simulate("SOFTMAX", layer, [x], [source], PROBABILITY), content, x)


@pytest.mark.parametrize("seed", range(4))
def test_softmax_at_random_scales(seed):
    rng = np.random.default_rng(seed)
    shape, layer = (2000, 40), keras.layers.Softmax()
    for scale in 2.0 ** rng.uniform(-9, 3, 8):
        source = grid(scale, rng.integers(-128, 128))
        x = np.clip(rng.normal(0, rng.uniform(1, 90, (2000, 1)), shape), -128, 127).astype(np.int8)
        content = build(
            Op.SOFTMAX,
            2,
            [Tensor(shape, source), Tensor(shape, PROBABILITY)],
            kind="SoftmaxOptions",
            beta=1.0,
        )
        assert_agrees(simulate("SOFTMAX", layer, [x], [source], PROBABILITY), content, x)


# The reference kernel of LOG_SOFTMAX overflows from 4096 values on; squares fill 29 bits at 8257.
@pytest.mark.parametrize(
    ("name", "depth"),
    [("LOG_SOFTMAX", n) for n in (1, 3, 64, 4000)]
    + [("L2_NORMALIZATION", n) for n in (1, 3, 64, 9000)],
)
def test_log_softmax_and_unit_norm(name, depth):
    rng = np.random.default_rng(depth)
    layer, kind = {
        "LOG_SOFTMAX": (keras.layers.Activation("log_softmax"), "LogSoftmaxOptions"),
        "L2_NORMALIZATION": (keras.layers.UnitNormalization(), "L2NormOptions"),
    }[name]
    out = registry.rule(layer).grids[8]
    for scale in 2.0 ** rng.uniform(-8, 1, 4):
        source = grid(scale, rng.integers(-128, 128))
        spread = 2.0 ** rng.uniform(0, 7, (200, 1))
        x = np.clip(rng.normal(source.zero_point, spread, (200, depth)), -128, 127).astype(np.int8)
        x[0] = source.zero_point  # Of length 0.
        operands = [Tensor(x.shape, source), Tensor(x.shape, out)]
        content = build(getattr(Op, name), 2, operands, kind=kind)
        assert_agrees(simulate(name, layer, [x], [source], out), content, x)


@pytest.mark.parametrize(("name", "code"), [("sigmoid", Op.LOGISTIC), ("tanh", Op.TANH)])
@pytest.mark.parametrize("seed", range(6))
def test_pointwise_functions(name, code, seed):
    rng = np.random.default_rng(seed)
    x, layer, out = (
        CODES.reshape(1, -1),
        keras.layers.Activation(name),
        registry.ACTIVATIONS[name].grids[8],
    )
    for scale in [*(2.0 ** rng.uniform(-12, 2, 25)), 2.0**-seed]:
        source = grid(scale, rng.integers(-128, 128))
        content = build(code, 2, [Tensor(x.shape, source), Tensor(x.shape, out)])
        assert_agrees(
            simulate(registry.ACTIVATIONS[name].operator, layer, [x], [source], out), content, x
        )


# Those that this version of Keras has.
FUNCTIONS = sorted(x for x in {*operations.FUNCTIONS.values()} if hasattr(keras.ops, x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_by_table_are_those_of_float64(name):
    layer, x = layers.Function(name), np.linspace(0.1, 0.9, 9)
    traced = tf.function(layer.call, autograph=False)(tf.constant(x))
    assert traced.dtype == tf.float64
    # Others come from Keras, which may have float32 in them.
    own = {"exp2": np.exp2, "expm1": np.expm1, "log2": np.log2, "cbrt": np.cbrt, "tan": np.tan}
    np.testing.assert_allclose(traced, own.get(name, layer.call)(x), rtol=1e-12)


@pytest.mark.parametrize("layer", [keras.layers.ELU(), keras.layers.Activation("elu")])
@pytest.mark.parametrize("seed", range(6))
def test_elu(layer, seed):
    rng = np.random.default_rng(seed)
    x = CODES.reshape(1, -1)
    # Small ones, too: there float32 does not hold exp(x) - 1.
    for scale in [
        *(2.0 ** rng.uniform(-12, 2, 25)),
        *(2.0 ** rng.uniform(-34, -12, 9)),
        2.0**-seed,
    ]:
        source = grid(scale, rng.integers(-128, 128))
        for out in (grid(scale * rng.uniform(0.3, 2), rng.integers(-128, 128)), source):
            content = build(Op.ELU, 1, [Tensor(x.shape, source), Tensor(x.shape, out)])
            found = simulate("ELU", layer, [x], [source], out)
            # LiteRT has no reference kernel for ELU.
            np.testing.assert_array_equal(found, run(content, x))


@pytest.mark.parametrize(
    ("operator", "layer"),
    [
        ("ELU", keras.layers.Activation("elu")),
        ("EXP", keras.layers.Activation("exponential")),
        ("GELU", keras.layers.Activation("gelu")),
        ("GELU", layers.Gelu(approximate=False)),
        ("GELU", layers.Gelu(approximate=True)),  # As `keras.ops.gelu` has it by default.
    ],
)
def test_functions_on_ties(operator, layer):
    """Grids whose ratio has few bits: many values lie on ties, or a last bit beside."""
    options = {}
    if operator == "GELU":
        options = {"kind": "GeluOptions", "approximate": getattr(layer, "approximate", False)}
    rng, x = np.random.default_rng(0), CODES.reshape(1, -1)
    for _ in range(150):
        scale = np.float32(2.0 ** rng.uniform(-10, 16))
        source = grid(scale * np.float32(rng.integers(1, 31) / 16), rng.integers(-128, 128))
        out = grid(scale, rng.integers(-128, 128))
        operands = [Tensor(x.shape, source), Tensor(x.shape, out)]
        content = build(getattr(Op, operator), 1, operands, **options)
        found = simulate(operator, layer, [x], [source], out)
        np.testing.assert_array_equal(found, run(content, x))


@pytest.mark.parametrize(
    ("layer", "code"),
    [(keras.layers.ReLU(), Op.RELU), (keras.layers.ReLU(6.0), Op.RELU6)],
    ids=["relu", "relu6"],
)
@pytest.mark.parametrize("seed", range(6))
def test_relu_onto_another_grid(layer, code, seed):
    rng = np.random.default_rng(seed)
    x = CODES.reshape(1, -1)
    for ratio in ratios(-8, 7, 25, seed):
        # Behind ReLU6 the range ends at 6 or before, so that the grid clips there as well.
        scale = np.float32(rng.uniform(0.2, 1.0) * 6 / 255)
        source, out = grid(scale * ratio, rng.integers(-128, 100)), grid(scale, -128)
        ends = [Tensor(x.shape, source), Tensor(x.shape, out)]
        # QUANTIZE cuts at 0, where the grid begins; TFLite Micro has RELU.
        assert_agrees(simulate("RELU", layer, [x], [source], out), build(Op.QUANTIZE, 2, ends), x)
        found = simulate("RELU", layer, [x], [source], out, TFLM)
        assert_agrees(found, build(code, 2, ends), x)
        # A grid that begins below 0 does not cut there.
        ends[1] = Tensor(x.shape, out := grid(scale, -100))
        assert_agrees(simulate("RELU", layer, [x], [source], out), build(code, 2, ends), x)


@pytest.mark.parametrize("ratio", [2.0**-9, 2.0**7, 300.0])
def test_relu_onto_a_grid_beyond_those_of_xnnpack(ratio):
    x, layer = CODES.reshape(1, -1), keras.layers.ReLU()
    source, out = grid(np.float32(0.01 * ratio), -3), grid(np.float32(0.01), -128)
    content = build(Op.RELU, 2, [Tensor(x.shape, source), Tensor(x.shape, out)])
    assert_agrees(simulate("RELU", layer, [x], [source], out), content, x)


@pytest.mark.parametrize("operator", ["ADD", "RELU", "TANH", "SOFTMAX", "AVERAGE_POOL_2D"])
def test_kernels_give_the_same_inside_tf_function(operator):
    rng = np.random.default_rng(4)
    layer = {
        "ADD": None,
        "RELU": None,
        "TANH": keras.layers.Activation("tanh"),
        "SOFTMAX": keras.layers.Softmax(),
        "AVERAGE_POOL_2D": keras.layers.AveragePooling2D(2),
    }[operator]
    inputs = 2 if operator == "ADD" else 1
    codes = [tf.constant(rng.integers(-100, 100, (2, 8, 8, 3)), tf.float32) for _ in range(inputs)]
    grids = [tensors(grid(0.1, -3)), tensors(grid(0.023, 9))][:inputs]
    out = tensors(grid(1 / 128, 0))
    run_kernel = LITERT.kernel(operator, 8)
    eager = run_kernel(layer, codes, grids, out)
    traced = tf.function(lambda *codes: run_kernel(layer, list(codes), grids, out))(*codes)
    np.testing.assert_array_equal(eager, traced)
