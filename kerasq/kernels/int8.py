"""The operators on int8: XNNPACK where its delegate takes them, LiteRT's own kernels elsewhere."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import accumulators as sums
from kerasq.kernels import any_width
from kerasq.kernels.codes import clip, in_steps, reduced_axes
from kerasq.kernels.fixed_point import (
    exponent_of,
    int64,
    inverse_root,
    multiply_mantissa,
    multiply_rounding_twice,
)
from kerasq.kernels.floats import float32, float64, plus, product, quotient, round_away
from kerasq.support.shared import shared


def requantize(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """QUANTIZE: the ratio of the scales rounded to 1/256, the product rounded half up."""
    del layer
    return _requantized(codes[0], grids[0].scale, out)


@shared
def _requantized(codes: tf.Tensor, scale: tf.Tensor, out: Grid) -> tf.Tensor:
    # XNNPACK's multipliers have 8 fractional bits, and 1/2 of the last one is 128. Products stay
    # below 2^24: it takes ratios of less than 2^7.
    multiplier = tf.round(256.0 * (scale / out.scale))
    return clip(tf.floor((codes * multiplier + 128.0) / 256.0), out)


def relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RELU: as QUANTIZE where that cuts at 0, else gemmlowp's rule."""
    found = any_width.relu(layer, codes, grids, out)
    if out.levels is not None:
        return found
    return tf.where(quantize_cuts(grids[0], out), requantize(layer, codes, grids, out), found)


def quantize_cuts(grid: Grid, out: Grid) -> Any:
    """Whether QUANTIZE from one int8 grid onto another of all codes is a ReLU, and XNNPACK's."""
    ratio = grid.scale / out.scale
    return (out.zero_point == out.qmin) & (ratio >= 2.0**-8) & (ratio < 2.0**7)


def add(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ADD of two tensors: see `_sum`."""
    del layer
    return _sum(codes, grids, out, 1)


def subtract(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUB: as ADD, the second multiplier negative."""
    del layer
    return _sum(codes, grids, out, -1)


@shared
def _sum(codes: list, grids: list[Grid], out: Grid, sign: int) -> tf.Tensor:
    """XNNPACK's sum, or LiteRT's where steps of an input are too small for that."""
    # The quotient is float32, as XNNPACK gets it.
    ratios = [float64(grid.scale / out.scale) for grid in grids]
    return tf.cond(
        tf.minimum(*ratios) < 2.0**-10,
        lambda: _sum_of_litert(codes, grids, out, sign),
        lambda: _sum_of_xnnpack(codes, ratios, out, sign),
    )


def _sum_of_litert(codes: list, grids: list[Grid], out: Grid, sign: int) -> tf.Tensor:
    """Its own kernel, by gemmlowp's rule.

    The vectorized sum cuts off where the difference rounds; with it the last values of a tensor
    whose size is no multiple of 16 differ, by less than 2^-20, which only shows at ties.
    """
    ties = "down" if sign > 0 else "away"
    rescale = functools.partial(multiply_rounding_twice, ties=ties)
    return any_width.scaled_sum(codes, grids, out, sign, bits=20, rescale=rescale)


def _sum_of_xnnpack(codes: list, ratios: list[tf.Tensor], out: Grid, sign: int) -> tf.Tensor:
    """21-bit fixed-point multipliers under one shift, rounded half up."""
    # All that follows has up to 31 bits.
    # The larger multiplier gets 21 bits, [2^20, 2^21); the smaller one the same shift.
    shift = 20.0 - float64(exponent_of(tf.maximum(*ratios)))
    unit = 2.0**shift
    first, second = (
        float64(code) * tf.round(ratio * unit) for code, ratio in zip(codes, ratios, strict=True)
    )
    total = first + float(sign) * second
    return clip(float32(tf.floor(total / unit + 0.5)), out)


def multiply(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MUL of two tensors: the product times one float32 factor, ties to even."""
    del layer
    return _product(codes, grids, out)


@shared
def _product(codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    factor = quotient(product(grids[0].scale, grids[1].scale), out.scale)
    # The product of two codes has at most 16 bits, which float32 holds.
    return clip(tf.round(product(codes[0] * codes[1], factor)), out)


def average_pool(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """AVERAGE_POOL_2D: XNNPACK's convolution by equal weights of code 1, else LiteRT's own."""
    weights = equal_weights(layer.pool_size, layer.padding)
    if weights is None:
        return any_width.average_pool(layer, codes, grids, out)
    means = tf.nn.avg_pool(codes[0], layer.pool_size, layer.strides, "VALID")
    total = tf.round(means * float(np.prod(layer.pool_size)))
    return sums.rescale_onto(total, grids[0], weights, out)


def equal_weights(pool: Sequence[int], padding: str) -> Grid | None:
    """The grid of the weights that average a window; None where a convolution does not do it.

    Where windows are padded the places that count differ. Of larger windows XNNPACK's kernels take
    several passes.
    """
    count = int(np.prod(pool))
    if padding != "valid" or count > 25:
        return None
    return Grid(scale=np.float32(1.0 / count), zero_point=np.int32(0))


def mean(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """MEAN: as SUM, the factor divided by the count."""
    return _reduce(layer, codes[0], grids[0], out, is_mean=True)


def total(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SUM: the codes' sum by a float32 factor, plus a bias.

    The bias holds both zero points. Product and sum are float32: near ties their errors decide.
    """
    return _reduce(layer, codes[0], grids[0], out, is_mean=False)


def _reduce(
    layer: keras.Layer, codes: tf.Tensor, grid: Grid, out: Grid, is_mean: bool
) -> tf.Tensor:
    axes = reduced_axes(layer, codes)
    keepdims = getattr(layer, "keepdims", False)
    count = float(np.prod([codes.shape[i] for i in axes]))
    share = np.float32(1.0 / count) if is_mean else np.float32(1.0)
    factor = float64(grid.scale / out.scale * share)
    # XNNPACK sums the codes as they are stored, so both zero points go into the bias. float64 holds
    # the sum of any number of them; products are rounded to float32, where it rounds.
    zeros = count * float64(grid.zero_point)
    found = tf.reduce_sum(float64(codes), axes, keepdims=keepdims) + zeros
    bias = float32(float64(out.zero_point) - float64(float32(zeros * factor)))
    scaled = float32(found * factor)
    stored = tf.round(float32(float64(scaled) + float64(bias)))
    return clip(stored - out.zero_point, out)


def resize_bilinear(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RESIZE_BILINEAR between centres of pixels: weights of 11 bits, their sum rounded half up."""
    del grids, out
    height, width = layer.compute_output_shape(codes[0].shape)[1:3]
    rows = _blend(float64(codes[0]), axis=2, size=width)
    total = _blend(rows, axis=1, size=height)
    # 11 bits along each of two axes; codes times 2^22 fit float64, not float32.
    return float32(tf.floor((total + 2.0**21) / 2.0**22))


def _blend(x: tf.Tensor, axis: int, size: int) -> tf.Tensor:
    """`2^11` times the values between neighbours along an axis, `size` of them."""
    count = int(x.shape[axis])
    half = np.float32(0.5)
    # Places are float32 in XNNPACK: which two pixels are blended may hang on the last bit.
    place = (np.arange(size, dtype=np.float32) + half) * np.float32(count / size) - half
    place = np.clip(place, 0, count - 1).astype(np.float32)
    low = np.floor(place)
    high = np.minimum(low + 1, count - 1)
    below = tf.gather(x, low.astype(np.int32), axis=axis)
    above = tf.gather(x, high.astype(np.int32), axis=axis)
    weight = np.rint((place - low) * 2048).astype(np.float64)
    weight = weight.reshape([-1] + [1] * (3 - axis))
    return below * 2048.0 + (above - below) * weight


def matmul(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """BATCH_MATMUL: XNNPACK's where the second zero point is 0, as for weights, else gemmlowp's."""
    total = tf.matmul(float64(codes[0]), float64(codes[1]), transpose_b=layer.transpose)
    # The scales' product is float32 in LiteRT, its quotient is not.
    multiplier = float64(product(grids[0].scale, grids[1].scale)) / float64(out.scale)
    # The zero point is a tensor, as ranges are learned, so both are computed.
    once = sums.rescale_onto(float32(total), grids[0], grids[1], out)
    twice = clip(multiply_rounding_twice(total, multiplier), out)
    return tf.where(tf.equal(grids[1].zero_point, 0), once, twice)


def leaky_relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LEAKY_RELU: either slope rounded to 1/256, the product rounded half up.

    XNNPACK leaves slopes outside of 1/256..128 to LiteRT's own kernel.
    """
    ratio, slope = any_width.slopes(layer, grids[0], out)
    x = float64(codes[0])
    # -127.99609375 is -(2^15 - 1) / 2^8, the least 16-bit multiplier but one.
    is_xnnpack = (ratio >= 2.0**-8) & (ratio <= 2.0**7) & (tf.abs(slope) >= 2.0**-8)
    is_xnnpack &= (slope <= 2.0**7) & (slope >= -127.99609375)
    own = any_width.leaky_relu(layer, codes, grids, out)
    return tf.where(is_xnnpack, clip(_two_slopes(x, ratio, slope), out), own)


def _two_slopes(x: tf.Tensor, ratio: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """XNNPACK's LEAKY_RELU: multipliers of 8 fractional bits."""
    multiplier = tf.where(x >= 0.0, tf.round(256.0 * ratio), tf.round(256.0 * slope))
    return tf.floor((multiplier * x + 128.0) / 256.0)


def tabled(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """EXP, LOGISTIC, TANH: tables of the real function; see `_rounded`."""
    return _rounded(layer(codes[0] * grids[0].scale), out)


def elu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ELU: as `tabled`, of a function that is exact near 0."""
    del layer
    return _rounded(exact_elu(codes[0] * grids[0].scale), out)


def exact_elu(x: tf.Tensor) -> tf.Tensor:
    """ELU of float32 values."""
    real = float64(x)
    # TensorFlow's takes exp(x) - 1, which float32 rounds to multiples of 2^-24.
    return float32(tf.where(real < 0.0, tf.math.expm1(real), real))


def _rounded(y: tf.Tensor, out: Grid) -> tf.Tensor:
    """`rint(y * (1 / s) + z)`, each step rounded to float32: XNNPACK's tables.

    With the zero point added before, what lies just below a tie may become one.
    """
    zero = float32(out.zero_point)
    return clip(tf.round(plus(in_steps(y, out), zero)) - zero, out)


def gelu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """GELU, LiteRT's own: `x / 2 * erfc(-x / sqrt(2))` in float32, ties away from zero.

    Approximated, it is `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    """
    x = codes[0] * grids[0].scale
    if getattr(layer, "approximate", False):
        cube = product(product(product(np.float32(0.044715), x), x), x)
        inner = product(np.float32(np.sqrt(2.0 / np.pi)), plus(x, cube))
        share = plus(1.0, float32(tf.math.tanh(float64(inner))))
    else:
        share = float32(tf.math.erfc(-float64(product(x, np.float32(np.sqrt(0.5))))))
    return clip(round_away(float64(in_steps(product(0.5 * x, share), out))), out)


def _exponentials(below: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of codes below the largest one, from a float table, and their sums."""
    # Rounded from float64, since TensorFlow's float32 exp is not always the nearest number.
    exponentials = float32(tf.exp(float64(below * scale)))
    # A reduction would sum in another order, and float32 sums depend on it.
    return exponentials, tf.cumsum(exponentials, axis=-1)[..., -1:]


def softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX: a float table of exponentials, summed in order, rounded half up."""
    del layer
    below = codes[0] - tf.reduce_max(codes[0], axis=-1, keepdims=True)
    exponentials, total = _exponentials(below, grids[0].scale)
    inverse = quotient(1.0, total * out.scale)
    return clip(tf.floor(product(exponentials, inverse) + 0.5), out)


def log_softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LOG_SOFTMAX: a float table of exponentials, summed in order; ties to even."""
    del layer
    scale, zero = grids[0].scale, float32(grids[0].zero_point)
    largest = tf.reduce_max(codes[0], axis=-1, keepdims=True)
    _, total = _exponentials(codes[0] - largest, scale)
    logarithm = float32(tf.math.log(float64(total)))
    # Of codes as they are stored: the zero point falls out, but for the rounding.
    top = quotient(plus(product(scale, largest + zero), logarithm), out.scale)
    scaled = product(quotient(scale, out.scale), codes[0] + zero)
    return clip(tf.round(plus(scaled, -top)), out)


def normalize(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """L2_NORMALIZATION: the codes times an inverse root of their squares' sum; gemmlowp's rule."""
    del layer, grids
    x = int64(codes[0])
    mantissa, exponent = inverse_root(tf.reduce_sum(x * x, axis=-1, keepdims=True))
    # Of 128 steps a unit.
    return clip(multiply_mantissa(x, mantissa, exponent + 7), out)
