"""Operators with a kernel: integer sums, and the way back to the codes of the output."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels.codes import clip
from kerasq.kernels.fixed_point import (
    multiply_15_bits,
    multiply_rounding_once,
    multiply_rounding_twice,
)
from kerasq.kernels.floats import float64, product, quotient, round_away
from kerasq.support.shared import shared


@dataclasses.dataclass(frozen=True)
class IntegerWeights:
    """A kernel and bias as the device stores them.

    Attributes:
        codes: kernel codes (float32 tensor of integers), channels flattened to the last axis.
        grid: their grid: per channel along that axis, or one per tensor.
        bias: bias codes at `input scale * grid.scale`, float64.
    """

    codes: tf.Tensor
    grid: Grid
    bias: tf.Tensor

    def real(self, in_scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The kernel and bias that they stand for, float32, behind inputs of that scale."""
        scale = tf.cast(self.grid.scale, tf.float32)
        return self.codes * scale, tf.cast(self.bias, tf.float32) * (in_scale * scale)


def accumulate(run: Callable, codes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """`run(codes)` for a linear `run`: exact while float32 sums stay below 2^24.

    Codes of 16 bits go through in two halves of 8, which are summed in float64.
    """
    if grid.bits <= 8:
        return run(codes)
    # TensorFlow has no integer convolution for the CPU, and its float64 one takes many times as
    # long. Halves in [-128, 128] sum up in float32 as int8 codes do.
    high = tf.round(codes / 256.0)
    low = codes - high * 256.0
    return float64(run(high)) * 256.0 + float64(run(low))


def double_multiplier(grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """`s_in * s_w[c] / s_out` in double precision, as LiteRT prepares its multipliers."""
    return float64(grid.scale) * float64(weights.grid.scale) / float64(out.scale)


def rescale(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """All operators on int8: XNNPACK's "fp32" requantization.

    One float32 multiplication and one rounding.
    """
    return rescale_onto(total, grid, weights.grid, out)


def rescale_onto(total: tf.Tensor, grid: Grid, weights: Grid, out: Grid) -> tf.Tensor:
    """`rescale` of sums of codes of two grids."""
    return _rescaled(total, grid.scale, weights.scale, out)


@shared
def _rescaled(total: tf.Tensor, scale: tf.Tensor, of_weights: tf.Tensor, out: Grid) -> tf.Tensor:
    # XNNPACK's multiplier is float32 at each step, where LiteRT's own kernels prepare a double.
    multiplier = quotient(product(scale, of_weights), out.scale)
    return clip(tf.round(total * multiplier), out)


def rescale_15_bits(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV on int16, where sums are int64."""
    return clip(multiply_15_bits(total, double_multiplier(grid, weights, out)), out)


def rescale_once(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """CONV_2D with packed INT4 weights on int8, on Arm."""
    return clip(multiply_rounding_once(total, double_multiplier(grid, weights, out)), out)


def rescale_in_double(
    total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid
) -> tf.Tensor:
    """FULLY_CONNECTED on int16: int64 sums times a double, ties away from zero."""
    return clip(round_away(float64(total) * double_multiplier(grid, weights, out)), out)


def rescale_twice(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """CONV_2D with packed INT4 weights on int8, which XNNPACK leaves to LiteRT's own: x86-64.

    Ties go up: it is the vectorized one.
    """
    return clip(
        multiply_rounding_twice(total, double_multiplier(grid, weights, out), ties="up"), out
    )


def rescale_by_eights(
    total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid
) -> tf.Tensor:
    """DEPTHWISE_CONV_2D with packed INT4 weights on int8: as CONV_2D, but channels go by eights."""
    multiplier = double_multiplier(grid, weights, out)
    up = multiply_rounding_twice(total, multiplier, ties="up")
    away = multiply_rounding_twice(total, multiplier, ties="away")
    # The channels left over go through portable code, whose ties go away from zero.
    channels = total.shape[-1]
    is_vectorized = tf.range(channels) < channels // 8 * 8
    return clip(tf.where(is_vectorized, up, away), out)


def with_odd(own: Callable) -> Callable:
    """FULLY_CONNECTED with packed INT4 weights on int8: XNNPACK takes an even number of inputs.

    Two weights share a byte there; LiteRT's own kernel, `own`, takes the odd numbers.
    """

    def kernel(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
        is_odd = weights.codes.shape[0] % 2
        return (own if is_odd else rescale)(total, grid, weights, out)

    return kernel
