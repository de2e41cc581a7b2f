"""LiteRT's integer kernels in TensorFlow: what the device computes, bit for bit.

Every function takes and returns *centred codes*, `code - zero_point`, as float32 tensors: integers
below 2^24, on which float32 arithmetic is exact. They follow LiteRT's default kernels: XNNPACK
where its delegate takes the op, LiteRT's own where it does not (average pooling, softmax, relu onto
another grid). Checked against the interpreter in tests/test_kernels.py.

A function's signature is `(layer, codes, grids, out)`: the Keras layer, the list of its inputs as
centred codes, their grids, and the grid of the output.
"""

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


def _exponent(x: tf.Tensor) -> tf.Tensor:
    """The exponent e of a positive float32 that is m * 2^e, 1 <= m < 2; exact, as float64."""
    return _float64(tf.bitwise.right_shift(tf.bitcast(x, tf.int32), 23) - 127)


def add(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """ADD of two tensors: 21-bit fixed-point multipliers under one shift, rounded half up."""
    del layer
    ratios = [grid.scale / out.scale for grid in grids]
    shift = 2.0 ** (20.0 - _exponent(tf.maximum(*ratios)))
    total = sum(
        _float64(code) * tf.round(_float64(ratio) * shift)
        for code, ratio in zip(codes, ratios, strict=True)
    )
    return clip(_float32(tf.floor(total / shift + 0.5)), out)


def relu(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """RELU onto another grid: gemmlowp's fixed-point multiplication, which rounds twice.

    Once to the multiplier m in [1/2, 1) of the ratio m * 2^e, once to the right shift by -e; both
    half up, since what is negative is clipped anyway. The upper limit is the clamp of the grid.
    """
    del layer
    ratio = grids[0].scale / out.scale
    exponent = _exponent(ratio) + 1.0
    product = _float64(tf.nn.relu(codes[0])) * _float64(ratio)
    right = 2.0 ** tf.maximum(-exponent, 0.0)
    first = tf.floor(product * right + 0.5)
    return clip(_float32(tf.floor(first / right + 0.5)), out)


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
    """Any kernel that is the real function of the input, rounded: lookup tables."""
    return quantize(layer(codes[0] * grids[0].scale), out)


def softmax(layer: keras.Layer, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """SOFTMAX: a float table of exponentials, summed in order, rounded half up."""
    del layer
    below = codes[0] - tf.reduce_max(codes[0], axis=-1, keepdims=True)
    # Each step in float64 and back is the float32 step, correctly rounded: TensorFlow's own float32
    # exp is not, and its graph optimizer rearranges float32 products and quotients.
    exponentials = _float32(tf.exp(_float64(below * grids[0].scale)))
    total = tf.cumsum(exponentials, axis=-1)[..., -1:]
    inverse = _float32(1.0 / _float64(total * out.scale))
    scaled = _float32(_float64(exponentials) * _float64(inverse))
    return clip(tf.floor(scaled + 0.5), out)


def _float32(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


def _float64(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float64)
