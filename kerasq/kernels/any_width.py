"""The operators whose rounding is one and the same on int8 and int16."""

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import codes as real_codes
from kerasq.kernels.codes import clip
from kerasq.kernels.fixed_point import multiply_rounding_twice
from kerasq.kernels.floats import float32, float64


def quantize(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """QUANTIZE from float; also a constant, which is rounded when the file is written."""
    del grids
    return real_codes.quantize(layer(codes[0]), out)


def relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RELU onto another grid: gemmlowp's rule. The upper limit is the clamp of the grid."""
    del layer
    ratio = float64(grids[0].scale / out.scale)
    positive = tf.nn.relu(codes[0])
    return clip(multiply_rounding_twice(positive, ratio), out)


def on_one_grid(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """CONCATENATION, PACK, MAXIMUM, MINIMUM: inputs lie on the output's grid already."""
    del grids, out
    return layer(codes)


def average_pool(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """AVERAGE_POOL_2D: averages the codes themselves, zero point included, ties away from zero."""
    del grids
    # Where ties go depends on the sign of the code, so the zero point comes back first. In
    # float64 no mean is rounded onto a tie, or off it.
    stored = float64(codes[0] + out.zero_point)
    mean = tf.nn.avg_pool(stored, layer.pool_size, layer.strides, layer.padding.upper())
    rounded = tf.sign(mean) * tf.floor(tf.abs(mean) + 0.5)
    return float32(rounded) - out.zero_point
