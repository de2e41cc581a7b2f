"""Weights of one bit."""

import keras
import tensorflow as tf

from kerasq.quantizers.activations import NARROWEST
from kerasq.quantizers.base import WeightQuantizer, inner_axes


@keras.saving.register_keras_serializable("kerasq")
class Binary(WeightQuantizer):
    """`w_q = sign(w) * mean |w|`, a mean a channel (Rastegari et al. 2016, equations 4 and 6).

    dL/dw = g, the incoming gradient, everywhere: the straight-through estimator of slope 1
    (Courbariaux et al. 2015, BinaryConnect). The mean counts as a constant, where Rastegari et al.
    differentiate it and stop the gradient of the sign beyond 1. There is no range that learns.
    """

    widths = range(1, 2)

    @property
    def code_bits(self) -> int:
        """-1 and 1 take two bits."""
        return 2

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """The mean magnitude of a channel."""
        return tf.maximum(tf.reduce_mean(tf.abs(kernel), inner_axes(kernel)), NARROWEST)

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-1 where weights are negative, else 1."""
        # Not tf.sign, which has a third value for weights that are 0.
        return tf.where(kernel < 0.0, -1.0, 1.0)
