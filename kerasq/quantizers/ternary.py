"""Weights of three values a channel: computed (TWN) or learned (TTQ)."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq.quantizers.activations import NARROWEST, UpperEnd, project
from kerasq.quantizers.base import WeightQuantizer, inner_axes, step_of


@keras.saving.register_keras_serializable("kerasq")
class Ternary(WeightQuantizer):
    """TWN: -a, 0 and a, a channel (Li & Liu 2016, arXiv 1605.04711).

    Zero where `|w| <= threshold * mean |w|` (equation 3); `a` is the mean magnitude of the others
    (equation 5). dL/dw = g, the incoming gradient (straight-through): `a` counts as a constant, and
    no range learns.

    Args:
        threshold: share of the mean magnitude; 0.7 is the paper's rule of thumb, 0.75 in its third
            version.
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
        """The signs of the weights, 0 up to the threshold."""
        threshold = self.threshold * tf.reduce_mean(tf.abs(kernel), inner_axes(kernel))
        return _signs(kernel, threshold)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`a`, the mean magnitude of what is not 0, `(channels,)`."""
        # An empty channel has no such weights, and no scale may be 0.
        return tf.maximum(_mean_where(kernel, self.codes(kernel) != 0.0), NARROWEST)


@keras.saving.register_keras_serializable("kerasq")
class TrainedTernary(WeightQuantizer):
    """TTQ: -n, 0 and p, both learned, a channel or a layer (Zhu et al. 2017, where it is a layer).

    Zero where `|w| <= threshold * max |w|`. The smaller of n and p is rounded to a
    127th of the larger one, since codes are symmetric: p = 127 and n = round(127 n / p), or the
    other way round.

    Gradients, with g the incoming one (as in the paper, whose weights are in units of their largest
    magnitude): `dL/dw = g p / max |w|` where `w_q = p`, `g n / max |w|` where it is -n, and g where
    it is 0; dL/dp is the sum of g where w_q = p, dL/dn that of -g where it is -n.

    Args:
        threshold: share of the largest magnitude; 0.05 is the paper's.
        per_layer: whether all channels share n, p and the threshold, as in the paper; each has its
            own by default.
        **kwargs: see `WeightQuantizer`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> weights = kerasq.TrainedTernary(per_layer=True)
        >>> q = kerasq.quantize_model(model, "w2a8", weights=weights)
    """

    widths = range(2, 3)

    def __init__(self, threshold: float = 0.05, per_layer: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold, self.per_layer = threshold, per_layer

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"threshold": self.threshold, "per_layer": self.per_layer}
        return {**super().get_config(), **own}

    @property
    def code_bits(self) -> int:
        """Two different magnitudes want all of int8."""
        return 8

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `positive` and `negative`, the two magnitudes of each channel."""

        def mean_of(sign: float) -> Callable[[], tf.Tensor]:
            def first() -> tf.Tensor:
                found = kernel()
                return _mean_where(found, self._signs(found) == sign, self._axes(found))

            return first

        shape = () if self.per_layer else kernel().shape[-1:]
        options = {"shape": shape, "constraint": UpperEnd()}
        self.positive = self.parameter("positive", value=mean_of(1.0), **options)
        self.negative = self.parameter("negative", value=mean_of(-1.0), **options)
        super().start(kernel)

    def _axes(self, kernel: tf.Tensor) -> list[int]:
        """The axes of weights that share magnitudes."""
        return [*range(kernel.shape.rank)] if self.per_layer else inner_axes(kernel)

    def _signs(self, kernel: tf.Tensor) -> tf.Tensor:
        threshold = self.threshold * tf.reduce_max(tf.abs(kernel), self._axes(kernel))
        return _signs(kernel, threshold)

    def _magnitudes(self) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(project(v, UpperEnd()) for v in (self.positive, self.negative))

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """A 127th of the larger magnitude."""
        step = step_of(tf.maximum(*self._magnitudes()), 127)
        return tf.broadcast_to(step, kernel.shape[-1:])

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-127..127, three of them a channel."""
        step = self.scale(kernel)
        positive, negative = (tf.round(v / step) for v in self._magnitudes())
        signs = self._signs(kernel)
        below = tf.where(signs < 0.0, -negative, 0.0)
        return tf.where(signs > 0.0, positive, below)

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """p, 0 and -n with the gradients that the class states."""
        positive, negative = self._magnitudes()
        signs = self._signs(kernel)
        above, below = (tf.cast(signs == sign, kernel.dtype) for sign in (1.0, -1.0))
        # The masks have no gradient: this gives p and n theirs, and the weights none.
        magnitudes = above * positive - below * negative
        largest = tf.maximum(tf.reduce_max(tf.abs(kernel), self._axes(kernel)), NARROWEST)
        slope = (above * positive + below * negative) / largest
        slope = tf.where(signs == 0.0, 1.0, slope)
        # 0 with the gradient `slope`, a constant: that of the weights alone.
        weights = tf.stop_gradient(slope) * (kernel - tf.stop_gradient(kernel))
        return magnitudes + weights


def _signs(kernel: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """-1, 0 and 1; 0 where magnitudes are not above the threshold."""
    return tf.sign(kernel) * tf.cast(tf.abs(kernel) > threshold, kernel.dtype)


def _mean_where(kernel: tf.Tensor, chosen: tf.Tensor, axes: list[int] | None = None) -> tf.Tensor:
    """The mean magnitude, over axes (None: a channel), of the weights that are chosen."""
    axes = inner_axes(kernel) if axes is None else axes
    count = tf.reduce_sum(tf.cast(chosen, kernel.dtype), axes)
    total = tf.reduce_sum(tf.where(chosen, tf.abs(kernel), 0.0), axes)
    # 0 where none is chosen.
    return total / tf.maximum(count, 1.0)
