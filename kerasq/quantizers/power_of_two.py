"""Weights that become powers of two, a part at a time."""

from collections.abc import Callable

import keras
import tensorflow as tf

from kerasq.quantizers.activations import NARROWEST
from kerasq.quantizers.base import WeightQuantizer, inner_axes
from kerasq.scales import floor_log2, power

# What stands in `PowerOfTwo.frozen` for a weight that is still trained.
FREE = -128.0
# Exponents that int8 holds: codes 1, 2, 4, ..., 64.
_EXPONENTS = 7


@keras.saving.register_keras_serializable("kerasq")
class PowerOfTwo(WeightQuantizer):
    """INQ: weights that are frozen are 0 or +-2^n, the others still int8 (Zhou A. et al. 2017).

    `kerasq.IncrementalQuantization` freezes them, a part at a time. With n1 the highest exponent of
    a channel, `n1 = floor(log2(4 max |w| / 3))`, and n2 = n1 + 1 - 2^(bits-2) the lowest::

        2^n  where  3/4 2^n <= |w| < 3/2 2^n,   2^n2 from 1/2 2^n2 on,   0 below   (equation 4)

    The scale is 2^(n1 - 6), so that all of them, and what is not frozen yet, are int8 codes. int8
    holds seven exponents, 2^0 to 2^6, so that at 5 bits the smallest of INQ's eight is left out.

    dL/dw = g, the incoming gradient, for weights that are free (straight-through), and 0 for frozen
    ones. There is no range that learns.
    """

    widths = range(2, 6)

    @property
    def code_bits(self) -> int:
        """8: codes are powers of two up to 64, or, until they are frozen, any of int8."""
        return 8

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `exponent`, n1 of each channel, and `frozen`, the codes that stay."""
        shape = kernel().shape
        self.exponent = self.parameter(
            "exponent", shape[-1:], value=lambda: highest_exponent(kernel()), trainable=False
        )
        # Floats, since workers cannot send each other int8 variables (TensorFlow 2.21).
        self.frozen = self.parameter(
            "frozen", shape, value=lambda: tf.fill(shape, FREE), trainable=False
        )
        super().start(kernel)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`2^(n1 - 6)`, exactly."""
        del kernel
        return power(self.exponent.value - (_EXPONENTS - 1))

    def is_frozen(self) -> tf.Tensor:
        """Which weights stay at a power of two."""
        return self.frozen.value != FREE

    def powers(self, kernel: tf.Tensor) -> tf.Tensor:
        """The codes that weights get when they are frozen: 0 or +-2^k, k up to 6."""
        size = tf.abs(kernel) / self.scale(kernel)
        span = min(2 ** (self.bits - 2), _EXPONENTS)
        lowest = _EXPONENTS - span
        # 3/4 2^n <= size < 3/2 2^n means n <= log2(size / 0.75) < n + 1; 0 has no logarithm.
        exponent = floor_log2(tf.maximum(size, 1e-30) / 0.75)
        exponent = tf.clip_by_value(exponent, float(lowest), float(_EXPONENTS - 1))
        codes = tf.where(size < 2.0**lowest / 2, 0.0, power(exponent))
        return tf.sign(kernel) * codes

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """What is frozen, and the nearest int8 code of the rest."""
        free = tf.clip_by_value(tf.round(kernel / self.scale(kernel)), -127.0, 127.0)
        return tf.where(self.is_frozen(), self.frozen.value, free)

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel, whose frozen weights get no gradient."""
        return tf.where(self.is_frozen(), tf.stop_gradient(kernel), kernel)

    def restored(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel, its frozen weights at their exact values: undoes decay and momentum."""
        exact = self.frozen.value * self.scale(kernel)
        return tf.where(self.is_frozen(), exact, kernel)


def highest_exponent(kernel: tf.Tensor) -> tf.Tensor:
    """`n1 = floor(log2(4 s / 3))` of each channel, s its largest magnitude."""
    largest = tf.maximum(tf.reduce_max(tf.abs(kernel), inner_axes(kernel)), NARROWEST)
    return floor_log2(largest * 4.0 / 3.0)
