"""Operators with a kernel: integer sums, and the way back to the codes of the output."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels.codes import clip
from kerasq.kernels.fixed_point import (
    float32,
    float64,
    multiply_15_bits,
    multiply_rounding_once,
    multiply_rounding_twice,
)
from kerasq.litert import operators


@dataclasses.dataclass(frozen=True)
class IntegerWeights:
    """A kernel and bias as the device stores them.

    Attributes:
        codes: kernel codes (float32 tensor of integers), channels flattened to the last axis.
        grid: their grid, per channel along that axis.
        bias: bias codes at `input scale * grid.scale`, float64.
    """

    codes: tf.Tensor
    grid: Grid
    bias: tf.Tensor


def accumulate(run: Callable, codes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """`run(codes)` for a linear `run`: exact while float32 sums stay below 2^24.

    Codes of 16 bits go through in two halves of 8, which are summed in float64.
    """
    if grid.bits <= 8:
        return run(codes)
    high = tf.round(codes / 256.0)
    return float64(run(high)) * 256.0 + float64(run(codes - high * 256.0))


def _real(grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """`s_in * s_w[c] / s_out` in double precision."""
    return float64(grid.scale) * float64(weights.grid.scale) / float64(out.scale)


def rescale(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """TRANSPOSE_CONV, and what is below on int8: XNNPACK's "fp32" requantization.

    One float32 multiplication and one rounding.
    """
    # Rounded to float32 after each step, out of reach of TensorFlow's graph optimizer.
    product = float32(float64(grid.scale) * float64(weights.grid.scale))
    return clip(tf.round(total * float32(float64(product) / float64(out.scale))), out)


def convolution(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """CONV_2D: XNNPACK on int8; LiteRT's own kernels on int16 and for packed INT4 kernels."""
    if grid.bits > 8:
        return clip(multiply_15_bits(total, _real(grid, weights, out)), out)
    if operators.packs("CONV_2D", weights.grid.bits, grid.bits):
        return clip(multiply_rounding_twice(total, _real(grid, weights, out), ties="up"), out)
    return rescale(total, grid, weights, out)


def depthwise(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """DEPTHWISE_CONV_2D: as CONV_2D, but the vectorized INT4 kernel takes channels by eights."""
    if grid.bits > 8:
        return clip(multiply_15_bits(total, _real(grid, weights, out)), out)
    if operators.packs("DEPTHWISE_CONV_2D", weights.grid.bits, grid.bits):
        real = _real(grid, weights, out)
        vectorized = total.shape[-1] // 8 * 8
        up = multiply_rounding_twice(total, real, ties="up")
        away = multiply_rounding_twice(total, real, ties="away")
        return clip(tf.where(tf.range(total.shape[-1]) < vectorized, up, away), out)
    return rescale(total, grid, weights, out)


def fully_connected(total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid) -> tf.Tensor:
    """FULLY_CONNECTED: XNNPACK on int8, but for INT4 kernels with an odd number of inputs."""
    if grid.bits > 8:
        return clip(multiply_rounding_once(total, _real(grid, weights, out)), out)
    packed = operators.packs("FULLY_CONNECTED", weights.grid.bits, grid.bits)
    if packed and weights.codes.shape[0] % 2:
        return clip(multiply_rounding_twice(total, _real(grid, weights, out), ties="up"), out)
    return rescale(total, grid, weights, out)
