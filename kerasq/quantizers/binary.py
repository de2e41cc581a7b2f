"""Weights of one bit."""

import math
from typing import Any

import keras
import tensorflow as tf

from kerasq.quantizers.activations import NARROWEST
from kerasq.quantizers.base import WeightQuantizer, inner_axes

GRADIENTS = ("straight", "xnor")


@keras.saving.register_keras_serializable("kerasq")
class Binary(WeightQuantizer):
    """`w_q = sign(w) * mean |w|`, a mean a channel (Rastegari et al. 2016, equations 4 and 6).

    dL/dw = g, the incoming gradient, everywhere: the straight-through estimator of slope 1
    (Courbariaux et al. 2015, BinaryConnect), and the mean counts as a constant. With
    `gradient="xnor"` it is that of XNOR-Net (Rastegari et al. 2016, section 3.1), for a channel of
    n weights of the mean magnitude a::

        dL/dw = g (1 / n + a)   where |w| <= 1,   g / n   beyond

    There is no range that learns.

    Args:
        gradient: "straight" or "xnor".
        **kwargs: see `WeightQuantizer`.

    Raises:
        ValueError: for another gradient.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> q = kerasq.quantize_model(model, "w1a8", weights=kerasq.Binary(gradient="xnor"))
    """

    widths = range(1, 2)

    def __init__(self, gradient: str = "straight", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if gradient not in GRADIENTS:
            raise ValueError(
                f"`gradient` must be one of {list(GRADIENTS)}. Received: gradient={gradient!r}."
            )
        self.gradient = gradient

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "gradient": self.gradient}

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

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """What has the gradient that the class states."""
        if self.gradient == "straight":
            return kernel
        inside = tf.cast(tf.abs(kernel) <= 1.0, kernel.dtype)
        slope = 1.0 / math.prod(kernel.shape[:-1]) + inside * self.scale(kernel)
        return tf.stop_gradient(slope) * kernel
