"""Kernels of the Ethos-U NPU, where they differ from TFLite Micro's: what Vela programs.

Read off the register commands of Vela 5.2.0, and checked against them in
tests/targets/test_ethos_u.py.
"""

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import any_width
from kerasq.kernels.codes import clip, quantize
from kerasq.kernels.fixed_point import multiply_rounding_once, multiply_rounding_twice
from kerasq.kernels.floats import float32, float64
from kerasq.kernels.int8 import exact_elu
from kerasq.kernels.int16 import reduced


def pointwise(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """EXP, GELU: tables of the real function, rounded."""
    return quantize(layer(codes[0] * grids[0].scale), out)


def elu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ELU: as `pointwise`, of a function that is exact near 0."""
    del layer
    return quantize(exact_elu(codes[0] * grids[0].scale), out)


def mean(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MEAN: a depthwise convolution sums up, and one multiplier has the scales and the count."""
    found, count = reduced(layer, codes[0])
    ratio = float64(grids[0].scale) / float64(out.scale) / count
    return clip(multiply_rounding_twice(found, ratio), out)


def total(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUM: the sum, by a 31-bit multiplier, half up."""
    found, _ = reduced(layer, codes[0])
    ratio = float64(grids[0].scale) / float64(out.scale)
    return clip(multiply_rounding_once(found, ratio), out)


def average_pool(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """AVERAGE_POOL_2D: windows without padding as TFLite Micro, whose ties go away from zero.

    `(sum * scale + 2^(shift - 1)) >> shift` with a scale that is rounded up takes negative ties
    down, too. Where windows are padded the NPU divides by itself, ties up.
    """
    if layer.padding == "valid":
        return any_width.average_pool(layer, codes, grids, out)
    stored = float64(codes[0] + out.zero_point)
    average = tf.nn.avg_pool(stored, layer.pool_size, layer.strides, layer.padding.upper())
    return float32(tf.floor(average + 0.5)) - out.zero_point
