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
    ratios = [float64(grid.scale / out.scale) for grid in grids]
    shift = 2.0 ** (20.0 - float64(fixed_point.exponent_of(tf.maximum(*ratios))))
    total = sum(
        float64(code) * tf.round(ratio * shift) for code, ratio in zip(codes, ratios, strict=True)
    )
    return clip(float32(tf.floor(total / shift + 0.5)), out)


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
