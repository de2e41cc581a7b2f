"""LiteRT's integer kernels in TensorFlow: what the device computes, bit for bit.

Every function takes and returns *centred codes*, `code - zero_point`, as float32 tensors: integers
below 2^24, on which float32 arithmetic is exact. They follow LiteRT's default kernels: XNNPACK
where its delegate takes the op, LiteRT's own where it does not. The rounding rules were read off
LiteRT 2.3 on x86-64, and are checked against the interpreter in tests/test_kernels.py.

The signature of an operator without weights is `(layer, codes, grids, out)`: the Keras layer, the
list of its inputs as centred codes, their grids, and the grid of the output. Operators with a
kernel are in `accumulators`.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import int8, int16
from kerasq.kernels.accumulators import (
    IntegerWeights,
    accumulate,
    convolution,
    depthwise,
    fully_connected,
    rescale,
)
from kerasq.kernels.codes import centre, clip, quantize, quantize_weights
from kerasq.kernels.fixed_point import float32, float64, multiply_rounding_twice

__all__ = [
    "IntegerWeights",
    "accumulate",
    "add",
    "average_pool",
    "centre",
    "clip",
    "constant",
    "convolution",
    "depthwise",
    "fully_connected",
    "leaky_relu",
    "lookup",
    "lookup_table",
    "matmul",
    "mean",
    "multiply",
    "on_one_grid",
    "pointwise",
    "quantize",
    "quantize_weights",
    "relu",
    "requantize",
    "rescale",
    "resize_bilinear",
    "sigmoid",
    "softmax",
    "subtract",
    "tanh",
]


def _by_width(narrow: Callable, wide: Callable) -> Callable:
    """The kernel for int8, or the one for int16, by the grid of the output."""

    def run(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
        return (narrow if out.bits <= 8 else wide)(layer, codes, grids, out)

    run.__doc__ = f"int8: {narrow.__doc__}\n\nint16: {wide.__doc__}"
    return run


add = _by_width(int8.add, int16.add)
subtract = _by_width(int8.subtract, int16.subtract)
multiply = _by_width(int8.multiply, int16.multiply)
resize_bilinear = _by_width(int8.resize_bilinear, int16.resize_bilinear)
matmul = _by_width(int8.matmul, int16.matmul)
mean = _by_width(int8.mean, int16.mean)
softmax = _by_width(int8.softmax, int16.softmax)
sigmoid = _by_width(int8.pointwise, int16.sigmoid)
tanh = _by_width(int8.pointwise, int16.tanh)
pointwise = int8.pointwise
leaky_relu = int8.leaky_relu
lookup = int8.lookup
lookup_table = int8.lookup_table


def requantize(codes: tf.Tensor, grid: Grid, out: Grid) -> tf.Tensor:
    """QUANTIZE from one grid onto another."""
    narrow = max(grid.bits, out.bits) <= 8
    return (int8 if narrow else int16).requantize(codes, grid, out)


def constant(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """The codes of a constant, rounded when the file is written."""
    del grids
    return quantize(layer(codes[0]), out)


def relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RELU onto another grid: gemmlowp's rule. The upper limit is the clamp of the grid."""
    del layer
    ratio = float64(grids[0].scale / out.scale)
    return clip(multiply_rounding_twice(tf.nn.relu(codes[0]), ratio), out)


def on_one_grid(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """CONCATENATION, MAXIMUM, MINIMUM: every input is first requantized to the output's grid."""
    return layer(
        [
            code if grid is out else requantize(code, grid, out)
            for code, grid in zip(codes, grids, strict=True)
        ]
    )


def average_pool(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """AVERAGE_POOL_2D: averages the codes themselves, zero point included, ties away from zero."""
    del grids
    x = float64(codes[0] + out.zero_point)
    mean = tf.nn.avg_pool(x, layer.pool_size, layer.strides, layer.padding.upper())
    return float32(tf.sign(mean) * tf.floor(tf.abs(mean) + 0.5)) - out.zero_point
