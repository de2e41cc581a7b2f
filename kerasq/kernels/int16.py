"""The operators on int16, where LiteRT's default and reference kernels are (nearly) the same code.

Curves are tables of 16-bit numbers with linear interpolation between the entries. Grids are
symmetric, so codes and centred codes are the same.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import any_width
from kerasq.kernels.codes import clip, reduced_axes
from kerasq.kernels.fixed_point import (
    exponent_of,
    int64,
    multiply_15_bits,
    multiply_rounding_twice,
    multiply_wrapping,
    power_of_two,
    round_half_away,
    shift_right,
    shift_right_half_up,
)
from kerasq.kernels.floats import float32, float64, plus, product, quotient, round_away
from kerasq.layers import InverseRoot, Masked


def _round(x: np.ndarray) -> np.ndarray:
    """To the nearest integer, ties away from zero."""
    return np.trunc(x + np.copysign(0.5, x))


def requantize(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """QUANTIZE where one of the two grids has 16 bits: gemmlowp's rule."""
    del layer
    ratio = float64(grids[0].scale) / float64(out.scale)
    return clip(multiply_rounding_twice(codes[0], ratio), out)


def add(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """QUANTIZE onto the coarser grid of the two inputs, and ADD, whose inputs are exact there."""
    one = _coarser(*grids)
    codes = [requantize(layer, [x], [grid], one) for x, grid in zip(codes, grids, strict=True)]
    return any_width.scaled_sum(codes, [one, one], out, 1, bits=15, rescale=multiply_rounding_twice)


def _coarser(a: Grid, b: Grid) -> Grid:
    """The grid that both inputs of ADD lie on.

    Onto a common scale LiteRT rounds 16 values at once by another rule than those left over, on
    processors that have AVX2: up to 3 % of the sums would hang on where in a tensor they are.
    """
    return Grid(scale=tf.maximum(a.scale, b.scale), zero_point=a.zero_point, bits=16)


def subtract(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUB: inputs 15 bits up onto twice the larger scale, their difference back down."""
    del layer
    return any_width.scaled_sum(codes, grids, out, -1, bits=15, rescale=multiply_rounding_twice)


def multiply(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MUL: gemmlowp's rule on the product."""
    del layer
    # LiteRT multiplies and divides the scales as float32.
    multiplier = quotient(product(grids[0].scale, grids[1].scale), out.scale)
    # Two codes of 16 bits: float32 does not hold their product.
    total = int64(codes[0]) * int64(codes[1])
    return clip(multiply_wrapping(total, float64(multiplier)), out)


def mean(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MEAN: gemmlowp's rule on the sum."""
    found, count = reduced(layer, codes[0])
    ratio = float64(grids[0].scale) / float64(out.scale)
    return clip(multiply_rounding_twice(found, ratio, count=count), out)


def total(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUM: the sum by a float32 factor, ties away from zero.

    Source: LiteRT, kernels/internal/optimized/reduce.h (`QuantizedMeanOrSum`).
    """
    found, _ = reduced(layer, codes[0])
    # The sum itself is rounded to float32 first, which has 24 bits.
    scaled = float64(product(float32(found), quotient(grids[0].scale, out.scale)))
    return clip(round_away(scaled), out)


def reduced(layer: keras.Layer, codes: tf.Tensor) -> tuple[tf.Tensor, int]:
    """The sum of codes along a layer's axes, and how many there are of each."""
    axes = reduced_axes(layer, codes)
    keepdims = getattr(layer, "keepdims", False)
    # Sums of more than 256 codes leave the 24 bits of float32.
    found = tf.reduce_sum(int64(codes), axes, keepdims=keepdims)
    return found, int(np.prod([codes.shape[i] for i in axes]))


def resize_bilinear(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RESIZE_BILINEAR between centres of pixels: places of 10 bits, ties away from zero.

    Source: LiteRT, kernels/internal/reference/resize_bilinear.h (`ResizeBilinearInteger`).
    """
    del grids, out
    height, width = layer.compute_output_shape(codes[0].shape)[1:3]
    rows = _blend(int64(codes[0]), axis=2, size=width)
    total = _blend(rows, axis=1, size=height)
    return float32(round_half_away(total, 20))


def _blend(x: tf.Tensor, axis: int, size: int) -> tf.Tensor:
    """`2^10` times the values between neighbours along an axis, `size` of them."""
    count = int(x.shape[axis])
    step = (1024 * count + size // 2) // size
    # Half a step, minus half a pixel of 1024: centres lie on centres.
    place = np.arange(size) * step + step // 2 - 512
    low = np.maximum(place // 1024, 0)
    # Rounded up: a place on a pixel is blended of that pixel and itself.
    high = np.clip(-(-place // 1024), 0, count - 1)
    below, above = tf.gather(x, low, axis=axis), tf.gather(x, high, axis=axis)
    weight = (place - 1024 * low).astype(np.int64)
    weight = weight.reshape([-1] + [1] * (3 - axis))
    return (1024 - weight) * below + weight * above


def matmul(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """BATCH_MATMUL: int64 sums, a multiplier of 15 bits."""
    # The scales' product is float32 in LiteRT, its quotient is not.
    multiplier = float64(product(grids[0].scale, grids[1].scale)) / float64(out.scale)
    return matmul_by(layer, codes, multiplier, out)


def matmul_by(layer: keras.Layer, codes: list, multiplier: tf.Tensor, out: Grid) -> tf.Tensor:
    """`matmul` by a multiplier."""
    # float64 holds sums up to 2^53, and TensorFlow has no fast matrix product of int64.
    total = tf.matmul(float64(codes[0]), float64(codes[1]), transpose_b=layer.transpose)
    return clip(multiply_15_bits(total, multiplier), out)


def _table(function: Callable, low: float, high: float) -> np.ndarray:
    """513 samples of `function` in units of 2^-15, half the error of interpolation taken off.

    Source: LiteRT, kernels/internal/common.h (`gen_lut`).
    """
    x = np.linspace(low, high, 513)
    samples = _round(function(x) * 2.0**15)
    # A chord is worst in the middle of its 128 steps: half of that error goes to either end.
    middle = function(x[:-1] + (high - low) / 1024) * 2.0**15
    # As LiteRT writes it, one end of the chord is rounded and the other is not.
    chord = (function(x[1:]) * 2.0**15 + samples[:-1]) / 2
    error = _round(chord) - _round(middle)
    samples[:-1] -= _round(error / 2)
    return np.clip(samples, -(2**15), 2**15 - 1).astype(np.int64)


def interpolate(values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A table's value at `x` in [-2^15, 2^15)."""
    # 2^16 inputs over 512 intervals: 7 bits within one.
    index = shift_right(x, 7) + 256
    place = tf.bitwise.bitwise_and(x, int64(127))
    base = tf.gather(values, index)
    slope = tf.gather(values, index + 1) - base
    return base + shift_right_half_up(slope * place, int64(7))


def table_between(function: Callable, grid: Grid, out: Grid) -> tf.Tensor:
    """513 samples of `function` over a grid, in codes of another, as `_table` has them.

    Source: LiteRT, kernels/internal/common.h (`LUTPopulateInt16`), which rounds each step to
    float32.
    """
    zero = float32(grid.zero_point)
    low, high = (product(grid.scale, float(code) - zero) for code in (grid.qmin, grid.qmax))
    # The width of the output's range: its ends are rounded before they are subtracted.
    width = plus(product(out.scale, 2.0**15 - 1.0), product(out.scale, 2.0**15))
    unit = quotient(2.0**16, width)
    step = plus(high, -low) / 512.0

    def value(x: tf.Tensor) -> tf.Tensor:
        return product(float32(function(float64(x))), unit)

    x = plus(low, product(tf.range(513.0), step))
    ends, last = value(x), _rounded(value(high))
    samples, middle = _rounded(ends[:-1]), _rounded(value(plus(x[:-1], step / 2.0)))
    error = _rounded(plus(ends[1:], samples) / 2.0) - middle
    table = tf.concat([samples - _rounded(error / 2.0), last[None]], 0)
    return int64(tf.clip_by_value(table, -(2.0**15), 2.0**15 - 1.0))


def _rounded(x: tf.Tensor) -> tf.Tensor:
    """float32 to the nearest integer, ties away from zero."""
    return float32(round_away(float64(x)))


def softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX: exp over [-10, 0] and 1 / (1 + x) over [0, 1] by tables."""
    del layer
    tables = _table(np.exp, -10.0, 0.0), _table(lambda x: 1.0 / (1.0 + x), 0.0, 1.0)
    return softmax_by_tables(codes[0], grids[0], out, *map(tf.constant, tables))


def softmax_by_tables(
    codes: tf.Tensor, grid: Grid, out: Grid, exponentials: tf.Tensor, reciprocals: tf.Tensor
) -> tf.Tensor:
    """SOFTMAX by tables of 513 values of exp over [-10, 0] and of 1 / (1 + x) over [0, 1]."""
    below = codes - tf.reduce_max(codes, axis=-1, keepdims=True)
    # The table takes 65536 codes over [-10, 0], the largest for the maximum itself.
    multiplier = float64(grid.scale) / (10.0 / 65535.0)
    scaled = multiply_rounding_twice(below, multiplier)
    index = tf.clip_by_value(scaled + 2**15 - 1, int64(-(2**15)), int64(2**15 - 1))
    exponentials = interpolate(exponentials, index)
    total = tf.reduce_sum(exponentials, axis=-1, keepdims=True)
    # total = 2^shift * (1 + x)
    shift = exponent_of(float64(total))
    normalized = shift_right_half_up(total * power_of_two(30 - shift), int64(14))
    # x at 16 bits, minus the 1 in front of it (2^16) and the table's offset (2^15).
    fraction = normalized - (2**15 + 2**16)
    fraction = tf.clip_by_value(fraction, int64(-(2**15)), int64(2**15 - 1))
    inverse = interpolate(reciprocals, fraction)
    return clip(shift_right_half_up(exponentials * inverse, shift), out)


def inverse_root_grid(layer: InverseRoot, grid: Grid, least: int = 1) -> Grid:
    """The grid of inverse roots: its largest code is that of the input's code `least`.

    Or as many powers of two less as keep it below the layer's `largest`.
    """
    most = tf.math.rsqrt(least * float64(grid.scale))
    # Read off the bits: a logarithm may round across a power of two.
    halvings = tf.maximum(exponent_of(most / layer.largest) + 1, 0)
    scale = most / (2.0**15 - 1.0) / 2.0 ** float64(halvings)
    return Grid(scale=float32(scale), zero_point=tf.zeros(()), bits=16)


# What a softmax on int16 tells apart at most, see `softmax`.
_SOFTMAX_DEPTH = 10.0


def masked_grid(layer: Masked, grid: Grid) -> Grid:
    """The grid of scores and masked ones: its lowest value is 10 below those of the scores' own.

    Beside any score, a softmax so gets the least exponential that its kernel knows. A grid of 8
    bits has its scores in 2^7 steps or more for each of its own, so that they stay what they are.
    """
    if layer.value == 0.0:  # Of what a softmax returned.
        return grid
    zero = float32(grid.zero_point)
    below, above = zero - float(grid.qmin), float(grid.qmax) - zero
    reach = tf.maximum(plus(product(grid.scale, below), _SOFTMAX_DEPTH), product(grid.scale, above))
    return Grid(scale=quotient(reach, 2.0**15 - 1.0), zero_point=tf.zeros(()), bits=16)


def _sigmoid_table() -> np.ndarray:
    """65536 sigmoid(i / 24), half the error of interpolation taken off; the last entry is full.

    Source: LiteRT, kernels/internal/common.h (`sigmoid_table_uint16`, described by its formula).
    """
    x = np.arange(257) / 24.0
    samples = 2.0**16 / (1.0 + np.exp(-x))
    middle = 2.0**16 / (1.0 + np.exp(-(x[:-1] + 1 / 48)))
    chord = (samples[:-1] + samples[1:]) / 2
    error = middle - chord
    table = np.floor(samples[:-1] + error / 2 + 0.5)
    # Of 16 bits, where the sigmoid would round to 2^16.
    table[255] = 2**16 - 1
    return table.astype(np.int64)


def _scaled(codes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Codes times `3 * 4096 * scale`, by a multiplier of 15 bits or more, rounded half up."""
    # 3 * 4096 steps a unit, and 2^9 of them an entry: the sigmoid's table has 24 entries a unit.
    real = float64(grid.scale) * (4096.0 * 3.0)
    shift = tf.clip_by_value(14 - exponent_of(real), int64(0), int64(31))
    # The loop in LiteRT doubles while it is at most 32767 / 2, which 2^14 is not.
    doubled = real * 2.0 ** float64(shift)
    shift += int64(doubled <= 32767.0 / 2.0)
    multiplier = int64(real * 2.0 ** float64(shift))
    return shift_right_half_up(int64(codes) * multiplier, shift)


def _sigmoid(x: tf.Tensor, bits: int, full: int) -> tf.Tensor:
    """The sigmoid's table at |x| / 2^bits, `bits` fractional bits kept; `full` behind its end."""
    table = tf.constant(_sigmoid_table())
    # The table has half of the sigmoid; callers mirror it.
    x = tf.abs(x)
    index = shift_right(x, bits)
    place = tf.bitwise.bitwise_and(x, int64(2**bits - 1))
    # Both branches of the `where` are computed: indices must be legal in either.
    legal = tf.minimum(index, 254)
    base = tf.gather(table, legal)
    slope = tf.gather(table, legal + 1) - base
    value = base * 2**bits + place * slope
    return tf.where(index >= 255, int64(full), value)


def sigmoid(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LOGISTIC: the table of the sigmoid, interpolated; ties go away from 1/2."""
    del layer
    x = _scaled(codes[0], grids[0])
    above = _sigmoid(x, 9, (2**15 - 1) * 2**10)
    # sigmoid(-x) = 1 - sigmoid(x)
    below = 2**25 - above
    # The last 10 bits are rounded off.
    rounded = tf.where(x >= 0, above + 2**9, below + 2**9 - 1)
    return clip(shift_right(rounded, 10), out)


def tanh(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """TANH: 2 sigmoid(2x) - 1 by the table of the sigmoid; ties go away from 0."""
    del layer
    x = _scaled(codes[0], grids[0])
    size = _sigmoid(x, 8, (2**16 - 1) * 2**8) - 2**23
    # The last 8 bits are rounded off as those of the sigmoid are.
    rounded = tf.where(x >= 0, size + 2**7, 2**7 - 1 - size)
    return clip(shift_right(rounded, 8), out)
