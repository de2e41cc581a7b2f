"""Which scales are powers of two, and arithmetic on powers of two that is exact."""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales:
    """Which scales are powers of two, with zero points of 0; others are any real numbers.

    Attributes:
        weights: those of kernels.
        activations: those of what layers return, and of inputs.
    """

    weights: bool = False
    activations: bool = False


FREE = "free"
# What `quantize_model(scales=...)` takes.
SCALES = {
    FREE: Scales(),
    "power_of_two": Scales(weights=True, activations=True),
    "power_of_two_weights": Scales(weights=True),
    "power_of_two_activations": Scales(activations=True),
}


def is_power_of_two(x: float) -> bool:
    """Whether a number above 0 is 2^n for a whole n."""
    return bool(np.frexp(x)[0] == 0.5)


def power(exponent: tf.Tensor) -> tf.Tensor:
    """2^n for whole n in [-126, 127], exactly: TensorFlow's pow is off by a bit for some."""
    return tf.bitcast(tf.bitwise.left_shift(tf.cast(exponent, tf.int32) + 127, 23), tf.float32)


def floor_log2(x: tf.Tensor) -> tf.Tensor:
    """`floor(log2(x))` of normal float32 values above 0, exactly: their exponent."""
    return tf.cast(tf.bitwise.right_shift(tf.bitcast(x, tf.int32), 23) - 127, tf.float32)


def ceil_log2(x: tf.Tensor) -> tf.Tensor:
    """`ceil(log2(x))` of normal float32 values above 0, exactly."""
    floor = floor_log2(x)
    return floor + tf.cast(power(floor) < x, tf.float32)


def log2(x: tf.Tensor) -> tf.Tensor:
    """`log2(x)` of normal float32 values above 0, exact where they are powers of two."""
    floor = floor_log2(x)
    # A quotient of logarithms alone would be off by a bit there, and its ceiling by one.
    return floor + tf.math.log(x / power(floor)) / np.float32(np.log(2.0))


def up(x: tf.Tensor) -> tf.Tensor:
    """The least power of two that is not below values from 0 on, but 2^-100 or more."""
    return power(ceil_log2(tf.maximum(x, 2.0**-100)))


def down(x: tf.Tensor) -> tf.Tensor:
    """The largest power of two that is not above values above 0."""
    return power(floor_log2(x))
