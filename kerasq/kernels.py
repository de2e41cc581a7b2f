"""LiteRT's integer kernels in TensorFlow: what the device computes, bit for bit.

Every function takes and returns *centred codes*, `code - zero_point`, as float32 tensors: integers
below 2^24, on which float32 arithmetic is exact. They follow LiteRT's default kernels: XNNPACK
where its delegate takes the op, LiteRT's own where it does not (average pooling, softmax, relu onto
another grid). Checked against the interpreter in tests/test_kernels.py.

A function's signature is `(layer, codes, grids, out)`: the Keras layer, the list of its inputs as
centred codes, their grids, and the grid of the output.
"""

from typing import Any

import keras
import tensorflow as tf

from kerasq.grid import Grid

# The rounding rules below were read off LiteRT 2.3 on x86-64.


def centre(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes of real values that lie on `grid`, up to float32 rounding."""
    return tf.round(x / grid.scale)


def clip(codes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes limited to those that `grid` has."""
    return tf.clip_by_value(codes, grid.qmin - grid.zero_point, grid.qmax - grid.zero_point)


def quantize(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes of any real values: QUANTIZE from float (ties to even)."""
    return clip(tf.round(x * (1.0 / grid.scale)), grid)


def rescale(accumulator: tf.Tensor, multiplier: tf.Tensor, grid: Grid) -> tf.Tensor:
    """One float32 multiplication and one rounding: XNNPACK's "fp32" requantization.

    Args:
        accumulator: int32 sums (as float32) of a convolution with its bias.
        multiplier: `s_in * s_w[c] / s_out`, shape `(channels,)` or `()`.
        grid: grid of the output.
    """
    return clip(tf.round(accumulator * multiplier), grid)


def requantize(codes: tf.Tensor, grid: Grid, out: Grid) -> tf.Tensor:
    """QUANTIZE from one grid onto another.

    XNNPACK multiplies int8 codes by the ratio of the scales rounded to 1/256 and rounds half up.
    """
    multiplier = tf.round(256.0 * (grid.scale / out.scale))
    return clip(tf.floor((codes * multiplier + 128.0) / 256.0), out)


def add(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ADD of two tensors: 21-bit fixed-point multipliers under one shift, rounded half up."""
    del layer
    ratios = [grid.scale / out.scale for grid in grids]
    largest = tf.maximum(*ratios)
    exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int32), 23) - 127
    shift = tf.cast(2.0, tf.float64) ** tf.cast(20 - exponent, tf.float64)
    total = sum(
        tf.cast(code, tf.float64) * tf.round(tf.cast(ratio, tf.float64) * shift)
        for code, ratio in zip(codes, ratios, strict=True)
    )
    return clip(tf.cast(tf.floor(total / shift + 0.5), tf.float32), out)


def concatenate(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """CONCATENATION, which only copies: every input is first requantized to the output's grid."""
    return layer(
        [
            code if grid is out else requantize(code, grid, out)
            for code, grid in zip(codes, grids, strict=True)
        ]
    )


def average_pool(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """AVERAGE_POOL_2D: averages the codes themselves, zero point included, ties away from zero."""
    mean = layer(codes[0] + out.zero_point)
    return tf.sign(mean) * tf.floor(tf.abs(mean) + 0.5) - out.zero_point


def pointwise(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """Any kernel that is the real function of the input, rounded: lookup tables, relu."""
    return quantize(layer(codes[0] * grids[0].scale), out)


def softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX: the real function, rounded half up."""
    real: Any = layer(codes[0] * grids[0].scale)
    return clip(tf.floor(real / out.scale + 0.5), out)
