"""Weights of three values a channel: computed (TWN) or learned (TTQ)."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq.quantizers.activations import NARROWEST, UpperEnd, project
from kerasq.quantizers.base import WeightQuantizer, inner_axes, step_of


@keras.saving.register_keras_serializable("kerasq")
class Ternary(WeightQuantizer):
    """TWN: -a, 0 and a, a channel (Li & Liu 2016, equations 5 and 6).

    Zero where `|w| <= threshold * mean |w|`; `a` is the mean magnitude of the others. dL/dw = g,
    the incoming gradient (straight-through): `a` counts as a constant, and no range learns.

    Args:
        threshold: share of the mean magnitude; 0.7 is the paper's, for normal weights.
        **kwargs: see `WeightQuantizer`.
    """

    widths = range(2, 3)

    def __init__(self, threshold: float = 0.7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-1, 0 and 1."""
        threshold = self.threshold * tf.reduce_mean(tf.abs(kernel), inner_axes(kernel))
        return _signs(kernel, threshold)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`a`, the mean magnitude of what is not 0, `(channels,)`."""
        return tf.maximum(
            tf.stop_gradient(_mean_where(kernel, self.codes(kernel) != 0.0)), NARROWEST
        )


@keras.saving.register_keras_serializable("kerasq")
class TrainedTernary(WeightQuantizer):
    """TTQ: -n, 0 and p, both learned, a channel (Zhu et al. 2017, section 4: a layer).

    Zero where `|w| <= threshold * max |w|` (equation 9). The smaller of n and p is rounded to a
    127th of the larger one, since codes are symmetric: p = 127 and n = round(127 n / p), or the
    other way round.

    Gradients, with g the incoming one (equations 7 and 8, weights in units of their largest
    magnitude): dL/dw = g p / max |w| where w_q = p, g n / max |w| where it is -n, and g where it is
    0; dL/dp is the sum of g where w_q = p, dL/dn that of -g where it is -n.

    Args:
        threshold: share of the largest magnitude; 0.05 is the paper's.
        **kwargs: see `WeightQuantizer`.
    """

    widths = range(2, 3)

    def __init__(self, threshold: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}

    @property
    def code_bits(self) -> int:
        """Two different magnitudes want all of int8."""
        return 8

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `positive` and `negative`, the two magnitudes of each channel."""
        for name, sign in (("positive", 1.0), ("negative", -1.0)):
            value = lambda sign=sign: _mean_where(kernel(), self._signs(kernel()) == sign)  # noqa: E731
            shape = (kernel().shape[-1],)
            setattr(self, name, self.parameter(name, shape, value=value, constraint=UpperEnd()))
        super().start(kernel)

    def _signs(self, kernel: tf.Tensor) -> tf.Tensor:
        threshold = self.threshold * tf.reduce_max(tf.abs(kernel), inner_axes(kernel))
        return _signs(kernel, threshold)

    def _magnitudes(self) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(project(v.value, UpperEnd()) for v in (self.positive, self.negative))

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """A 127th of the larger magnitude."""
        return step_of(tf.stop_gradient(tf.maximum(*self._magnitudes())), 127)

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-127..127, three of them a channel."""
        positive, negative = (tf.round(v / self.scale(kernel)) for v in self._magnitudes())
        signs = self._signs(kernel)
        return tf.where(signs > 0.0, positive, tf.where(signs < 0.0, -negative, 0.0))

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """p, 0 and -n with the gradients that the class states."""
        positive, negative = self._magnitudes()
        signs = self._signs(kernel)
        above, below = (tf.cast(signs == sign, kernel.dtype) for sign in (1.0, -1.0))
        largest = tf.maximum(tf.reduce_max(tf.abs(kernel), inner_axes(kernel)), NARROWEST)
        slope = tf.stop_gradient(above * positive + below * negative) / largest
        slope = tf.where(signs == 0.0, 1.0, slope)
        smooth = above * positive - below * negative
        return smooth + tf.stop_gradient(slope) * (kernel - tf.stop_gradient(kernel))


def _signs(kernel: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """-1, 0 and 1; 0 where magnitudes are not above the threshold."""
    return tf.sign(kernel) * tf.cast(tf.abs(kernel) > threshold, kernel.dtype)


def _mean_where(kernel: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """The mean magnitude, a channel, of the weights that are chosen."""
    count = tf.reduce_sum(tf.cast(chosen, kernel.dtype), inner_axes(kernel))
    total = tf.reduce_sum(tf.where(chosen, tf.abs(kernel), 0.0), inner_axes(kernel))
    return total / tf.maximum(count, 1.0)
