"""The operators on int8: XNNPACK where its delegate takes them, LiteRT's own kernels elsewhere."""

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import fixed_point
from kerasq.kernels.codes import clip, quantize
from kerasq.kernels.fixed_point import float32, float64


def requantize(codes: tf.Tensor, grid: Grid, out: Grid) -> tf.Tensor:
    """QUANTIZE: the ratio of the scales rounded to 1/256, the product rounded half up."""
    multiplier = tf.round(256.0 * (grid.scale / out.scale))
    return clip(tf.floor((codes * multiplier + 128.0) / 256.0), out)


def add(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ADD of two tensors: 21-bit fixed-point multipliers under one shift, rounded half up."""
    del layer
    return _sum(codes, grids, out, 1.0)


def subtract(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUB: as ADD, the second multiplier negative."""
    del layer
    return _sum(codes, grids, out, -1.0)


def _sum(codes: list, grids: list[Grid], out: Grid, sign: float) -> tf.Tensor:
    ratios = [float64(grid.scale / out.scale) for grid in grids]
    shift = 2.0 ** (20.0 - float64(fixed_point.exponent_of(tf.maximum(*ratios))))
    first, second = (
        float64(code) * tf.round(ratio * shift) for code, ratio in zip(codes, ratios, strict=True)
    )
    return clip(float32(tf.floor((first + sign * second) / shift + 0.5)), out)


def multiply(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MUL of two tensors: the product times one float32 factor, ties to even."""
    del layer
    product = float32(float64(grids[0].scale) * float64(grids[1].scale))
    factor = float32(float64(product) / float64(out.scale))
    return clip(tf.round(float32(float64(codes[0] * codes[1]) * float64(factor))), out)


def leaky_relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LEAKY_RELU: either slope rounded to 1/256, the product rounded half up."""
    ratio = float64(grids[0].scale / out.scale)
    slope = float64(float32(float64(grids[0].scale) * layer.negative_slope)) / float64(out.scale)
    up, down = tf.round(256.0 * ratio), tf.round(256.0 * float64(float32(slope)))
    x = float64(codes[0])
    return clip(tf.floor((tf.where(x >= 0.0, up, down) * x + 128.0) / 256.0), out)


def hard_swish(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """HARD_SWISH: x relu6(x + 3) / 6 in 16-bit fixed point, 7 more bits for the input.

    Source: LiteRT, kernels/internal/reference/hard_swish.h.
    """
    del layer
    fine = float32(float64(grids[0].scale) / 128.0)
    x = fixed_point.int64(codes[0]) * 128
    mantissa, exponent = _decompose_15_bits(float32(float64(fine) / float64(out.scale)))
    y = _high_product(x, mantissa)
    gate, shift = _decompose_15_bits(float32(float64(fine) / (3.0 / 32768.0)))
    left = tf.maximum(shift, 0)
    z = _saturated(x * fixed_point.power_of_two(tf.maximum(left - 1, 0)))
    z = _high_product(z, gate)
    z = tf.where(left > 0, _saturated(z * 2), z)
    z = fixed_point.round_half_away(z, tf.maximum(-shift, 0))
    z = fixed_point.shift_right(z + 2**15, 1)
    product = tf.sign(y) * fixed_point.shift_right(tf.abs(y) * z, 15)  # The gate is not negative.
    return clip(fixed_point.round_half_away(product, tf.maximum(-exponent, 0)), out)


def _decompose_15_bits(real: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mantissa of 15 bits and exponent of a positive multiplier."""
    mantissa, exponent = fixed_point.decompose(float64(real))
    return tf.minimum(fixed_point.shift_right(mantissa + 2**15, 16), 2**15 - 1), exponent


def _high_product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """`x * y / 2^15`, rounded half up."""
    return fixed_point.shift_right(x * y + 2**14, 15)


def _saturated(x: tf.Tensor) -> tf.Tensor:
    """Limited to 16 bits."""
    return tf.clip_by_value(x, fixed_point.int64(-(2**15)), fixed_point.int64(2**15 - 1))


def pointwise(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """Any kernel that is the real function of the input, rounded: lookup tables."""
    return quantize(layer(codes[0] * grids[0].scale), out)


def softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX: a float table of exponentials, summed in order, rounded half up."""
    del layer
    below = codes[0] - tf.reduce_max(codes[0], axis=-1, keepdims=True)
    # Each step in float64 and back is the float32 step, correctly rounded: TensorFlow's own float32
    # exp is not, and its graph optimizer rearranges float32 products and quotients.
    exponentials = float32(tf.exp(float64(below * grids[0].scale)))
    total = tf.cumsum(exponentials, axis=-1)[..., -1:]
    inverse = float32(1.0 / float64(total * out.scale))
    scaled = float32(float64(exponentials) * float64(inverse))
    return clip(tf.floor(scaled + 0.5), out)
