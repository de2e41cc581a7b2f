"""The operators whose rounding is one and the same on int8 and int16, and lookup tables."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import codes as real_codes
from kerasq.kernels.codes import clip
from kerasq.kernels.fixed_point import int64, multiply_rounding_twice
from kerasq.kernels.floats import float32, float64, product, quotient, round_away
from kerasq.layers import Function, Gelu, InverseRoot

# Layers that compute in the type of what they are given, as long as nobody casts it before.
_OF_ANY_TYPE = (Function, Gelu, keras.layers.ELU, keras.layers.Activation)


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
    """CONCATENATION, PACK, MAXIMUM, MINIMUM, SELECT_V2: inputs lie on the output's grid already.

    A constant of the layer's own, such as that of Masked, is the end of the grid that it is beyond.
    """
    del grids
    return clip(layer(codes), out)


def average_pool(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """AVERAGE_POOL_2D: averages the codes themselves, zero point included, ties away from zero."""
    del grids
    # Where ties go depends on the sign of the code, so the zero point comes back first. In
    # float64 no mean is rounded onto a tie, or off it.
    stored = float64(codes[0] + out.zero_point)
    mean = tf.nn.avg_pool(stored, layer.pool_size, layer.strides, layer.padding.upper())
    return float32(round_away(mean)) - out.zero_point


def scaled_sum(
    codes: list, grids: list[Grid], out: Grid, sign: int, *, bits: int, rescale: Callable
) -> tf.Tensor:
    """ADD (`sign` 1) or SUB (-1) of LiteRT itself and TFLite Micro.

    Inputs go up by so many bits onto twice the larger scale, which keeps their sum in int32, and
    that back down by gemmlowp's rule. `rescale(values, multiplier)` rounds each input.
    """
    common = 2.0 * tf.maximum(*(float64(grid.scale) for grid in grids))
    first, second = (
        rescale(float64(code) * 2.0**bits, float64(grid.scale) / common)
        for code, grid in zip(codes, grids, strict=True)
    )
    multiplier = common / (2.0**bits * float64(out.scale))
    return clip(multiply_rounding_twice(first + sign * second, multiplier), out)


def slopes(layer: keras.Layer, grid: Grid, out: Grid) -> tuple[tf.Tensor, tf.Tensor]:
    """The multipliers of LEAKY_RELU from zero on and below, float64."""
    ratio = float64(grid.scale / out.scale)
    # That of negative values is float32 from the file on, and after each step.
    scaled = product(grid.scale, np.float32(layer.negative_slope))
    return ratio, float64(quotient(scaled, out.scale))


def leaky_relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LEAKY_RELU of LiteRT itself: gemmlowp's rule with either slope."""
    return with_slopes(codes[0], *slopes(layer, grids[0], out), out)


def with_slopes(codes: tf.Tensor, ratio: tf.Tensor, slope: tf.Tensor, out: Grid) -> tf.Tensor:
    """Codes by a multiplier from zero on, and by another one, of any sign, below."""
    x = float64(codes)
    # Multipliers must be positive: the sign goes around, and 1e-300 stands for a slope of 0.
    multiplier = tf.where(x >= 0.0, ratio, tf.abs(slope))
    size = multiply_rounding_twice(x, tf.maximum(multiplier, 1e-300))
    return clip(tf.where(x >= 0.0, size, size * int64(tf.sign(slope))), out)


def lookup(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """CAST, ADD of the number of negative codes, and GATHER from the table."""
    # Codes start at -2^(bits - 1), the indices of GATHER at 0.
    stored = codes[0] + float32(grids[0].zero_point)
    index = tf.cast(stored - float(grids[0].qmin), tf.int32)
    return tf.gather(_table(layer, grids[0], out), index)


def _table(layer: keras.Layer, grid: Grid, out: Grid) -> tf.Tensor:
    """Centred codes of a function of each value alone, for every code of the input."""
    codes = tf.range(float(grid.qmin), float(grid.qmax + 1)) - float32(grid.zero_point)
    if isinstance(layer, InverseRoot):
        return _inverse_roots(codes, grid, out)
    x = codes * grid.scale
    # In float32 compilers differ in the last bit of an exponential, on which codes of 16 bits hang.
    y = layer.call(float64(x)) if isinstance(layer, _OF_ANY_TYPE) else float64(layer(x))
    # A logarithm of codes that no datum led to is NaN, which no code stands for.
    y = tf.where(tf.math.is_nan(y), tf.zeros_like(y), y)
    return clip(tf.round(y / float64(out.scale)), out)


def _inverse_roots(codes: tf.Tensor, grid: Grid, out: Grid) -> tf.Tensor:
    """Centred codes of inverse roots, where one grid was derived from the other.

    They hang on codes alone, so that all layers of a file share a table.
    """
    # 2^15 - 1 times a power of two, but for the rounding of scales.
    ratio = 1.0 / (tf.sqrt(float64(grid.scale)) * float64(out.scale)) / (2.0**15 - 1.0)
    power = 2.0 ** tf.round(tf.math.log(ratio) / np.log(2.0))
    # As RSQRT has it, the inverse root of 0 is the largest code; there are no negative ones.
    root = tf.math.rsqrt(tf.maximum(float64(codes), 1.0))
    return clip(tf.where(codes > 0.0, tf.round((2.0**15 - 1.0) * power * root), out.qmax), out)
