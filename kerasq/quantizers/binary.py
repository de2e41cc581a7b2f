"""Weights of one bit."""

import keras
import tensorflow as tf

from kerasq.quantizers.activations import NARROWEST
from kerasq.quantizers.base import WeightQuantizer, inner_axes


@keras.saving.register_keras_serializable("kerasq")
class Binary(WeightQuantizer):
    """`w_q = sign(w) * mean |w|`, a mean a channel (Rastegari et al. 2016, equation 6).

    dL/dw = g, the incoming gradient: the straight-through estimator of slope 1 (Courbariaux et al.
    2015, BinaryConnect, section 2.3), the mean a constant. There is no range that learns.
    """

    widths = range(1, 2)

    @property
    def code_bits(self) -> int:
        """-1 and 1 take two bits."""
        return 2

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """The mean magnitude of a channel."""
        return tf.maximum(
            tf.stop_gradient(tf.reduce_mean(tf.abs(kernel), inner_axes(kernel))), NARROWEST
        )

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-1 and 1."""
        return tf.where(kernel < 0.0, -1.0, 1.0)
