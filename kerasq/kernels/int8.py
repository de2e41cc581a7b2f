"""The operators on int8: XNNPACK where its delegate takes them, LiteRT's own kernels elsewhere."""

import keras
import numpy as np
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import fixed_point
from kerasq.kernels.codes import clip, quantize
from kerasq.kernels.fixed_point import float32, float64


def requantize(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """QUANTIZE: the ratio of the scales rounded to 1/256, the product rounded half up."""
    del layer
    # XNNPACK's multipliers have 8 fractional bits, and 1/2 of the last one is 128. Products stay
    # below 2^24: it takes ratios of less than 2^7.
    multiplier = tf.round(256.0 * (grids[0].scale / out.scale))
    return clip(tf.floor((codes[0] * multiplier + 128.0) / 256.0), out)


def add(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ADD of two tensors: 21-bit fixed-point multipliers under one shift, rounded half up."""
    del layer
    return _sum(codes, grids, out, 1.0)


def subtract(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUB: as ADD, the second multiplier negative."""
    del layer
    return _sum(codes, grids, out, -1.0)


def _sum(codes: list, grids: list[Grid], out: Grid, sign: float) -> tf.Tensor:
    # The quotient is float32, as XNNPACK gets it; all that follows has up to 31 bits.
    ratios = [float64(grid.scale / out.scale) for grid in grids]
    # The larger multiplier gets 21 bits, [2^20, 2^21); the smaller one the same shift.
    shift = 2.0 ** (20.0 - float64(fixed_point.exponent_of(tf.maximum(*ratios))))
    first, second = (
        float64(code) * tf.round(ratio * shift) for code, ratio in zip(codes, ratios, strict=True)
    )
    return clip(float32(tf.floor((first + sign * second) / shift + 0.5)), out)


def multiply(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MUL of two tensors: the product times one float32 factor, ties to even."""
    del layer
    # Each float32 step in float64 and back, which gives the same: TensorFlow's graph optimizer
    # rearranges float32 products and quotients. So in all that follows.
    product = float32(float64(grids[0].scale) * float64(grids[1].scale))
    factor = float32(float64(product) / float64(out.scale))
    return clip(tf.round(float32(float64(codes[0] * codes[1]) * float64(factor))), out)


def mean(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MEAN over all axes but the first and last: the codes' sum by a float32 factor, plus a bias.

    The bias holds both zero points. Product and sum are float32: near ties their errors decide.
    """
    axes = list(range(1, codes[0].shape.rank - 1))
    count = float(np.prod(codes[0].shape[1:-1]))
    factor = float64(grids[0].scale / out.scale * np.float32(1.0 / count))
    # XNNPACK sums the codes as they are stored, so both zero points go into the bias. float64 holds
    # the sum of any number of them; products are rounded to float32, where it rounds.
    zeros = count * float64(grids[0].zero_point)
    total = tf.reduce_sum(float64(codes[0]), axes, keepdims=getattr(layer, "keepdims", False))
    bias = float32(float64(out.zero_point) - float64(float32(zeros * factor)))
    product = float32((total + zeros) * factor)
    return clip(tf.round(float32(float64(product) + float64(bias))) - out.zero_point, out)


def resize_bilinear(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RESIZE_BILINEAR between centres of pixels: weights of 11 bits, their sum rounded half up."""
    del grids, out

    def blend(x: tf.Tensor, axis: int, size: int) -> tf.Tensor:
        """`2^11` times the values between neighbours along an axis."""
        count = int(x.shape[axis])
        place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(count / size)
        # Places are float32 in XNNPACK: which two pixels are blended may hang on the last bit.
        place = np.clip(place - np.float32(0.5), 0, count - 1).astype(np.float32)
        low = np.floor(place)
        weight = np.rint((place - low) * 2048).astype(np.float64)
        below, above = (
            tf.gather(x, np.minimum(low + i, count - 1).astype(np.int32), axis=axis) for i in (0, 1)
        )
        return below * 2048.0 + (above - below) * weight.reshape([-1] + [1] * (3 - axis))

    height, width = layer.compute_output_shape(codes[0].shape)[1:3]
    total = blend(blend(float64(codes[0]), 2, width), 1, height)
    # 11 bits along each of two axes; codes times 2^22 fit float64, not float32.
    return float32(tf.floor((total + 2.0**21) / 2.0**22))


def matmul(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """BATCH_MATMUL: one rounding where the second zero point is 0, else gemmlowp's rule."""
    total = tf.matmul(float64(codes[0]), float64(codes[1]), transpose_b=layer.transpose)
    product = float32(float64(grids[0].scale) * float64(grids[1].scale))
    real = float64(product) / float64(out.scale)
    # A second zero point of 0 takes another path through LiteRT. The zero point is a tensor, as
    # ranges are learned, so both are computed.
    once = fixed_point.multiply_rounding_once(total, real)
    twice = fixed_point.multiply_rounding_twice(total, real)
    return clip(tf.where(tf.equal(grids[1].zero_point, 0), once, twice), out)


def leaky_relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LEAKY_RELU: either slope rounded to 1/256, the product rounded half up.

    XNNPACK leaves slopes outside of 1/256..128 to LiteRT's own kernel: gemmlowp's rule.
    """
    ratio = float64(grids[0].scale / out.scale)
    slope = float64(float32(float64(grids[0].scale) * layer.negative_slope)) / float64(out.scale)
    up, down = tf.round(256.0 * ratio), tf.round(256.0 * float64(float32(slope)))
    x = float64(codes[0])
    rounded = tf.floor((tf.where(x >= 0.0, up, down) * x + 128.0) / 256.0)
    slope = float64(float32(slope))
    # Multipliers must be positive: the sign goes around, and 1e-300 stands for a slope of 0.
    real = tf.where(x >= 0.0, ratio, tf.abs(slope))
    exact = fixed_point.multiply_rounding_twice(x, tf.maximum(real, 1e-300))
    exact = tf.where(x >= 0.0, exact, exact * fixed_point.int64(tf.sign(slope)))
    # -127.99609375 is -(2^15 - 1) / 2^8, the least 16-bit multiplier but one.
    taken = (ratio >= 2.0**-8) & (ratio <= 2.0**7) & (tf.abs(slope) >= 2.0**-8)
    taken &= (slope <= 2.0**7) & (slope >= -127.99609375)
    return clip(tf.where(taken, rounded, float64(exact)), out)


def pointwise(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """Any kernel that is the real function of the input, rounded: lookup tables."""
    return quantize(layer(codes[0] * grids[0].scale), out)


def lookup_table(layer: keras.Layer, grid: Grid, out: Grid) -> tf.Tensor:
    """Centred codes of a function of each value alone, for every code of the input, `(256,)`."""
    codes = tf.range(float(grid.qmin), float(grid.qmax + 1)) - float32(grid.zero_point)
    y = layer(codes * grid.scale)
    # A logarithm of codes that no datum led to is NaN, which no code stands for.
    return quantize(tf.where(tf.math.is_nan(y), 0.0, y), out)


def lookup(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """CAST, ADD of the number of negative codes, and GATHER from the table."""
    # Codes start at -128, the indices of GATHER at 0.
    index = codes[0] + float32(grids[0].zero_point) - float(grids[0].qmin)
    return tf.gather(lookup_table(layer, grids[0], out), tf.cast(index, tf.int32))


def softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX: a float table of exponentials, summed in order, rounded half up."""
    del layer
    below = codes[0] - tf.reduce_max(codes[0], axis=-1, keepdims=True)
    # Each step in float64 and back is the float32 step, correctly rounded: TensorFlow's own float32
    # exp is not, and its graph optimizer rearranges float32 products and quotients.
    exponentials = float32(tf.exp(float64(below * grids[0].scale)))
    # A reduction would sum in another order, and float32 sums depend on it.
    total = tf.cumsum(exponentials, axis=-1)[..., -1:]
    inverse = float32(1.0 / float64(total * out.scale))
    scaled = float32(float64(exponentials) * float64(inverse))
    return clip(tf.floor(scaled + 0.5), out)
