"""Kernels of the Ethos-U NPU, where they differ from TFLite Micro's: what Vela programs.

Read off the register commands of Vela 5.2.0, and checked against them in
tests/targets/test_ethos_u.py.
"""

import dataclasses

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import any_width, int16, tflm
from kerasq.kernels.codes import clip, quantize
from kerasq.kernels.fixed_point import int64, multiply_rounding_once, multiply_rounding_twice
from kerasq.kernels.floats import float32, float64
from kerasq.kernels.int8 import exact_elu


def pointwise(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """EXP, GELU: tables of the real function, rounded."""
    return quantize(layer(codes[0] * grids[0].scale), out)


def elu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ELU: as `pointwise`, of a function that is exact near 0."""
    del layer
    return quantize(exact_elu(codes[0] * grids[0].scale), out)


def mean(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MEAN: a depthwise convolution sums up, and one multiplier has the scales and the count."""
    found, count = int16.reduced(layer, codes[0])
    ratio = float64(grids[0].scale) / float64(out.scale) / count
    return clip(multiply_rounding_twice(found, ratio), out)


def total(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUM: the sum, by a 31-bit multiplier, half up."""
    found, _ = int16.reduced(layer, codes[0])
    ratio = float64(grids[0].scale) / float64(out.scale)
    return clip(multiply_rounding_once(found, ratio), out)


def matmul(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """BATCH_MATMUL on int16: of one row and one column a MUL and a SUM, which the NPU has."""
    if not (layer.transpose and {code.shape[-2] for code in codes} == {1}):
        return int16.matmul(layer, codes, grids, out)
    grid = products(*grids)
    found = tf.reduce_sum(int64(tflm.multiply(layer, codes, grids, grid)), -1, keepdims=True)
    ratio = float64(grid.scale) / float64(out.scale)
    return clip(multiply_rounding_once(found, ratio), out)


def products(a: Grid, b: Grid) -> Grid:
    """The least grid of int16 that holds all products of the codes of two."""
    return dataclasses.replace(a, scale=a.scale * b.scale * 2.0**15)


def inverse_root(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RSQRT on int16: a table of 512 chords, as LiteRT makes them of other functions.

    Up to code 128 it is one chord, nearly flat where that code has the largest root of the grid.
    """
    del layer
    largest = float64(out.scale) * float(out.qmax)

    def root(x: tf.Tensor) -> tf.Tensor:
        return tf.where(x > 0.0, tf.math.rsqrt(x), largest)

    table = int16.table_between(root, grids[0], out)
    return clip(int16.interpolate(table, int64(codes[0])), out)


def average_pool(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """AVERAGE_POOL_2D: windows without padding as TFLite Micro, whose ties go away from zero.

    `(sum * scale + 2^(shift - 1)) >> shift` with a scale that is rounded up takes negative ties
    down, too. Where windows are padded the NPU divides by itself, ties up.
    """
    if not _is_padded(layer, codes[0].shape[1:3]):
        return any_width.average_pool(layer, codes, grids, out)
    stored = float64(codes[0] + out.zero_point)
    average = tf.nn.avg_pool(stored, layer.pool_size, layer.strides, layer.padding.upper())
    return float32(tf.floor(average + 0.5)) - out.zero_point


def _is_padded(layer: keras.Layer, size: tf.TensorShape) -> bool:
    """Whether windows of a pooling reach beyond an image."""
    windows = zip(size, layer.pool_size, layer.strides, strict=True)
    reached = [(-(-n // step) - 1) * step + pool > n for n, pool, step in windows]
    return layer.padding == "same" and any(reached)
