"""Weights through tanh, on odd codes."""

import keras
import tensorflow as tf

from kerasq.quantizers.activations import NARROWEST
from kerasq.quantizers.base import WeightQuantizer, step_of


@keras.saving.register_keras_serializable("kerasq")
class DoReFa(WeightQuantizer):
    """Steps between odd codes, denser use of them by tanh: no weight is 0.

    With `t = tanh(w) / m`, `m = max |tanh(w)|` over the kernel, and `n = 2^bits - 1`::

        w_q = m (2 round(n (t / 2 + 1/2)) / n - 1)          (Zhou S. et al. 2016)

    `m` is kept in the result, so that a trained kernel stays in its units. The codes are odd
    integers in [-n, n]: one bit wider than `bits`.

    dL/dw = g (1 - tanh(w)^2), g the incoming gradient: rounding has slope 1 (straight-through), and
    m counts as a constant. There is no range that learns.
    """

    widths = range(2, 8)

    @property
    def code_bits(self) -> int:
        """One more than `bits`, since codes are odd and go up to `2^bits - 1`."""
        return self.bits + 1

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`m / n`, the same for all channels."""
        # One m for the kernel, as in the paper: channels of small weights use inner codes only.
        largest = tf.maximum(tf.reduce_max(tf.abs(tf.tanh(kernel))), NARROWEST)
        return tf.fill(kernel.shape[-1:], step_of(largest, 2**self.bits - 1))

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """Odd integers in [-n, n]: `2 round((tanh(w) / scale + n) / 2) - n`."""
        levels = 2**self.bits - 1
        exact = tf.tanh(kernel) / self.scale(kernel)
        # Rounded as a number of steps from the lowest code, since only odd codes are legal.
        steps = tf.round((exact + levels) / 2)
        return 2 * steps - levels

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """`tanh(w)`: DoReFa without its rounding, in units of the result."""
        return tf.tanh(kernel)
