"""TFLite Micro's portable kernels, which CMSIS-NN and ESP-NN follow: they round twice.

Operators that are not here compute as LiteRT's own do (`any_width`, `int16`, `int8`).

Source: tflite-micro, tensorflow/lite/micro/kernels and lite/kernels/internal/reference.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import any_width, gemmlowp, int16
from kerasq.kernels.accumulators import IntegerWeights, double_multiplier
from kerasq.kernels.codes import clip, without_nan
from kerasq.kernels.fixed_point import (
    decompose,
    exponent_of,
    int64,
    multiply_mantissa,
    multiply_rounding_twice,
    multiply_wrapping,
    power_of_two,
    round_half_away,
    shift_right_half_up,
)
from kerasq.kernels.fixed_point import inverse_root as inverse_root_of
from kerasq.kernels.floats import float32, float64, quotient, round_away


def rescale(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """All operators with weights on int8: gemmlowp's rule."""
    return clip(multiply_rounding_twice(total, double_multiplier(grid, weights, out)), out)


def quantize(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """QUANTIZE from float: the quotient in float32, ties away from zero.

    NaN is the least int32, and with a negative zero point wraps around to the highest code.
    """
    del grids
    scaled = quotient(layer(codes[0]), out.scale)
    of_nan = tf.where(out.zero_point < 0.0, float32(out.qmax), float32(out.qmin))
    return without_nan(clip(round_away(float64(scaled)), out), out, of_nan)


def add(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ADD: inputs 20 bits (15 of int16) up onto twice the larger scale, their sum back down."""
    del layer
    return _sum(codes, grids, out, 1)


def subtract(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUB: as ADD, with the difference."""
    del layer
    return _sum(codes, grids, out, -1)


def _sum(codes: list, grids: list[Grid], out: Grid, sign: int) -> tf.Tensor:
    bits = 15 if out.bits == 16 else 20
    return any_width.scaled_sum(codes, grids, out, sign, bits=bits, rescale=multiply_rounding_twice)


def multiply(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MUL: gemmlowp's rule on the product."""
    del layer
    found = int64(codes[0]) * int64(codes[1])
    return clip(multiply_wrapping(found, _of_product(grids, out)), out)


def matmul(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """BATCH_MATMUL on int8: gemmlowp's rule on the sum."""
    total = tf.matmul(float64(codes[0]), float64(codes[1]), transpose_b=layer.transpose)
    return clip(multiply_rounding_twice(total, _of_product(grids, out)), out)


def matmul_16(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """BATCH_MATMUL on int16: LiteRT's, but for the multiplier's last of 15 bits."""
    return int16.matmul_by(layer, codes, _of_product(grids, out), out)


def _of_product(grids: list[Grid], out: Grid) -> tf.Tensor:
    """The multiplier of products, in float64, where LiteRT's has a product in float32."""
    return float64(grids[0].scale) * float64(grids[1].scale) / float64(out.scale)


def total(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUM: gemmlowp's rule on the sum."""
    found, _ = int16.reduced(layer, codes[0])
    ratio = float64(grids[0].scale) / float64(out.scale)
    return clip(multiply_rounding_twice(found, ratio), out)


def resize_bilinear(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RESIZE_BILINEAR on int8: as on int16, of the codes with their zero point."""
    zero = float32(out.zero_point)
    return int16.resize_bilinear(layer, [codes[0] + zero], grids, out) - zero


def _on_4_bits(function: Callable, output_bits: int) -> Callable:
    """A kernel of a function of gemmlowp's, of numbers with 4 integer bits."""

    def kernel(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
        del layer
        x = int64(codes[0])
        real = float64(grids[0].scale) * 2.0**27
        # Beyond it numbers would not fit: 15 / 16 of 2^31, in codes.
        shift = exponent_of(real) + 1
        radius = int64(tf.floor(15.0 * 2.0**27 / 2.0 ** float64(shift)))
        scaled = multiply_rounding_twice(x, real)
        found = round_half_away(function(scaled, 4), 31 - output_bits)
        lowest = out.qmin - int64(out.zero_point)
        found = tf.where(x <= -radius, lowest, tf.where(x >= radius, int64(2**30), found))
        return clip(found, out)

    return kernel


sigmoid = _on_4_bits(gemmlowp.logistic, 8)
tanh = _on_4_bits(gemmlowp.tanh, 7)


def softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX on int8: exponentials without integer bits, their sum with 12."""
    del layer
    _, exponentials, sums = _exponentials(codes[0], grids[0])
    # The sum as a number in [1, 2), times a power of two.
    zeros = gemmlowp.leading_zeros(sums)
    inverse = gemmlowp.inverse_of_one_plus(sums * power_of_two(zeros) - 2**31)
    found = gemmlowp.times(inverse, exponentials)
    bits = 12 - zeros + 31 - 8  # Of 12 integer bits; 8 of 31 are kept.
    return clip(shift_right_half_up(found, bits + tf.zeros_like(found)), out)


def log_softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LOG_SOFTMAX on int8: the logarithm of the exponentials' sum, with 5 integer bits."""
    del layer
    below, _, sums = _exponentials(codes[0], grids[0])
    return clip(round_half_away(below - gemmlowp.log(sums, 12), 22), out)


def _exponentials(codes: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """How far values are below the largest one, with 5 integer bits, no more than 31.

    Its exponentials, without integer bits, and their sum along the last axis, with 12.
    """
    real = tf.minimum(float64(grid.scale) * 2.0**26, 2.0**31 - 1.0)
    mantissa, exponent = decompose(real)
    below = int64(codes - tf.reduce_max(codes, axis=-1, keepdims=True))
    least = -int64(tf.floor(31.0 * 2.0**26 / 2.0 ** float64(exponent)))
    scaled = gemmlowp.times(tf.maximum(below, least) * power_of_two(exponent), mantissa)
    found = gemmlowp.exp_of_negative(scaled, 5)
    found = tf.where(below >= least, found, int64(0))
    return scaled, found, tf.reduce_sum(gemmlowp.shifted(found, -12), axis=-1, keepdims=True)


def relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RELU onto another grid: gemmlowp's rule. The upper limit is the clamp of the grid."""
    del layer
    ratio = float64(grids[0].scale) / float64(out.scale)
    return clip(multiply_rounding_twice(tf.nn.relu(codes[0]), ratio), out)


def leaky_relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LEAKY_RELU on int16: gemmlowp's rule with either slope, in double precision."""
    ratio = float64(grids[0].scale) / float64(out.scale)
    slope = ratio * float64(np.float32(layer.negative_slope))
    return any_width.with_slopes(codes[0], ratio, slope, out)


def inverse_root(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RSQRT on int16: the inverse root of the code with 20 fractional bits, by gemmlowp's rule."""
    del layer
    x = int64(codes[0])
    mantissa, exponent = inverse_root_of(x)
    root = multiply_mantissa(tf.ones_like(x), mantissa, exponent + 20)
    mantissa, exponent = decompose(1.0 / (tf.sqrt(float64(grids[0].scale)) * float64(out.scale)))
    found = multiply_mantissa(root, mantissa, exponent - 20)
    return clip(tf.where(x == 0, int64(out.qmax), found), out)


def softmax_16(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX on int16: LiteRT's, by tables whose steps are rounded to float32."""
    del layer
    exponentials = int16.table_between(tf.exp, _grid(10.0, 2**15 - 1), _grid(2.0, 0))
    reciprocals = int16.table_between(
        lambda x: 1.0 / float64(float32(1.0 + x)), _grid(1.0, -(2**15)), _grid(2.0, 0)
    )
    return int16.softmax_by_tables(codes[0], grids[0], out, exponentials, reciprocals)


def _grid(length: float, zero_point: int) -> Grid:
    """The grid of int16 that is so long."""
    scale = np.float32(length) / np.float32(2**16 - 1)
    return Grid(scale=scale, zero_point=np.int32(zero_point), bits=16)
