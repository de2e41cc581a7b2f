"""Scales that are powers of two, by thresholds that are trained: TQT."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, scales
from kerasq.quantizers.activations import CALIBRATED, NARROWEST, ActivationQuantizer
from kerasq.quantizers.base import WeightQuantizer, inner_axes
from kerasq.quantizers.uniform import Uniform
from kerasq.support.shared import shared

# The least binary logarithm of a threshold; that of one that has seen no data is below.
LEAST, UNSEEN = -18.0, -21.0
MOST = 126.0
# How much of the mean square of its gradients a threshold keeps at a step.
MEMORY = 0.999
# By how much the logarithm of a kernel's threshold may differ from that of its largest weight.
BELOW, ABOVE = 3.0, 1.0
# As much farther as a range whose ends are a power of two apart may lie within its values.
CLIPPING = 2.0


@keras.saving.register_keras_serializable("kerasq")
class Threshold(keras.layers.Layer):
    """`log2 t`, trained, and the scale that it stands for: a power of two.

    With b bits (Jain et al. 2020, arXiv 1903.08066, sections 3.2 and 3.3)::

        s = 2^ceil(log2 t) / 2^(b-1)

        dL/dlog2(t) = s ln 2 * sum of g * { round(x / s) - x / s   inside of the range
                                          { the lowest or highest code   where x lies beyond

    since the ceiling passes gradients on as they are (straight-through estimator; of values up to
    half a step beyond the ends, which the paper counts as inside, the codes count). Their size
    depends on how many values share the threshold and on the loss, so that the paper trains by
    Adam, or on normed gradients (its appendix B), as here under any optimizer::

        v <- 0.999 v + 0.001 g^2,   g <- tanh(g / sqrt(v / (1 - 0.999^steps))) / sqrt(2^(b-1) - 1)

    The last factor is the paper's bound of the rate for Adam, 0.1 / sqrt(2^(b-1) - 1), where SGD
    with a rate of 0.01 and a momentum of 0.9 would move by 0.1 a step.

    Args:
        bits: width of a code.
        shape: `()`, or `(channels,)`.
        first: returns the first `log2 t`, of that shape.
        learns: whether it trains.
        most: the largest `log2 t`.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(
        self,
        bits: int,
        shape: Any = (),
        first: Callable[[], tf.Tensor] | None = None,
        learns: bool = True,
        most: float = MOST,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "threshold", "dtype": "float32", **kwargs})
        self.bits, self.learns, self.most = bits, learns, most
        self._shape, self._first = shape, first

    def build(self, input_shape: Any = None) -> None:
        """Creates `log2_threshold` and, where it learns, `gradient_square` and `steps`."""
        del input_shape
        first = self._first or (lambda: tf.fill(self._shape, UNSEEN))
        self.log2 = self._scalars("log2_threshold", self._shape, first, self.learns)
        if self.learns:
            zeros = lambda: tf.zeros(self._shape)  # noqa: E731
            self.square = self._scalars("gradient_square", self._shape, zeros, False)
            self.steps = self._scalars("steps", (), lambda: tf.zeros(()), False)
        self.built = True

    def _scalars(
        self, name: str, shape: Any, value: Callable[[], tf.Tensor], trainable: bool
    ) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=lambda *_, **__: value(),
            trainable=trainable,
            # Replicas see other gradients: between them each has the mean.
            aggregation="mean",
            autocast=False,
        )

    def value(self) -> tf.Tensor:
        """t, as it is stored."""
        found = tf.convert_to_tensor(self.log2.value)
        floor = tf.floor(found)
        return scales.power(floor) * tf.exp((found - floor) * math.log(2.0))

    def assign(self, t: tf.Tensor) -> None:
        """Sets the threshold; one that is what it was keeps every bit."""
        kept = tf.convert_to_tensor(self.log2.value)
        self.log2.assign(tf.where(t == self.value(), kept, scales.log2(t)))

    def centre(self) -> None:
        """Moves `log2 t` half way between those where the scale changes, which stays."""
        # What is at an end would be beyond it after the first step of training.
        self.log2.assign(tf.math.ceil(self.log2.value) - 0.5)

    def scale(self, least: Any = LEAST, most: Any = MOST) -> tf.Tensor:
        """s, with `log2 t` within bounds; its gradient goes to `log2 t` in any case."""
        log2 = tf.convert_to_tensor(self.log2.value)
        most = tf.minimum(most, self.most)

        def exact(log2: tf.Tensor) -> tf.Tensor:
            inside = tf.maximum(tf.minimum(log2, most), tf.maximum(least, LEAST))
            return scales.power(tf.math.ceil(inside) - (self.bits - 1))

        @tf.custom_gradient
        def run(log2: tf.Tensor) -> Any:
            s = exact(log2)
            return s, lambda g: self._normed(g * s * math.log(2.0))

        return run(log2) if self.learns else exact(log2)

    def _normed(self, gradient: tf.Tensor) -> tf.Tensor:
        """The gradient as the class states it; notes its square."""
        count = tf.distribute.get_strategy().num_replicas_in_sync
        if count > 1:  # Of the whole batch, so that all have the same.
            gradient = tf.distribute.get_replica_context().all_reduce("sum", gradient)
        steps = self.steps.value + 1.0
        is_finite = tf.math.is_finite(gradient)
        square = MEMORY * self.square.value + (1.0 - MEMORY) * tf.square(gradient)
        square = tf.where(is_finite, square, self.square.value)
        # In a stateless call there are tensors in the place of variables, which stay as they are.
        if isinstance(self.steps.value, tf.Variable):
            self.square.assign(square)
            self.steps.assign(steps)
        size = tf.sqrt(square / (1.0 - MEMORY**steps)) + 1e-12
        # Optimizers add up those of all replicas.
        return tf.tanh(gradient / size) / (count * math.sqrt(2 ** (self.bits - 1) - 1))


@keras.saving.register_keras_serializable("kerasq")
class ThresholdActivations(ActivationQuantizer):
    """As its base, on a symmetric grid whose scale is a power of two: `Threshold`.

    The grid has all codes, `-2^(b-1) s` to `(2^(b-1) - 1) s`, with zero point 0. Behind a ReLU its
    lower half is not used, and the operator cuts at 0 and at the limit. Data move the threshold as
    they move the end of a range of the base; but learned, it may lie twice as far within the
    values, as the next larger scale is twice as large. Calibration leaves `log2 t` half way
    between whole numbers.

    Raises:
        ValueError: for fewer than 8 bits: narrower codes are the topmost ones of int8, and those
            around 0 are not cut by kernels.
    """

    def __init__(self, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(bits, **kwargs)
        if bits < 8:
            raise ValueError(
                "Activations whose scales are powers of two must have 8 or 16 bits. Received: "
                f'{bits} bits. Take such a scheme, or scales="power_of_two_weights".'
            )

    def build(self, input_shape: Any = None) -> None:
        """Creates the threshold and `batches_seen`."""
        del input_shape
        self.range_min = None
        self.threshold = Threshold(
            self.bits,
            learns=self._gradient() != "none",
            most=MOST if self.limit is None else math.log2(self.limit),
        )
        self.threshold.build()
        self.batches_seen = self._scalar("batches_seen", False, None)
        self.built = True

    @property
    def symmetric(self) -> bool:
        """True: the zero point is 0."""
        return True

    def _clipping(self) -> float:
        return super()._clipping() * (CLIPPING if self._gradient() != "none" else 1.0)

    def _high(self) -> tf.Tensor:
        return self.threshold.value()

    def _set(self, low: tf.Tensor, high: tf.Tensor) -> None:
        del low
        self.threshold.assign(high)

    def assign_range(self, low: float, high: float, seen: float = CALIBRATED) -> None:
        """Sets the threshold to the larger magnitude; see `ActivationQuantizer.assign_range`."""
        super().assign_range(low, high, seen)
        self.threshold.centre()

    def _range(self) -> tuple[tf.Tensor, tf.Tensor]:
        return self._of_scale(self.threshold.scale())

    def _symmetric(self, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        half = 2.0 ** (self.bits - 1)
        exact = scales.up(high) / half
        return self._of_scale(fake_quant.straight_through(high / half, exact))

    def _of_scale(self, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        half = 2.0 ** (self.bits - 1)
        return -half * scale, (half - 1.0) * scale

    def _grid(self) -> Any:
        return fake_quant.grid_from_range(*self.range(), self.bits)


@keras.saving.register_keras_serializable("kerasq")
class ThresholdWeights(Uniform):
    """As its base, with scales that are powers of two: `Threshold`, one a channel or kernel.

    Codes are `-(2^(b-1) - 1)` to `2^(b-1) - 1`, as LiteRT's specification has weights, where TQT
    has one more below 0. Thresholds start at the scale of the least squared error. They stay
    within an eighth and twice the largest weight, so that a kernel that grows, such as one
    that a BatchNormalization is folded into before it has seen data, is not cut off. Under
    "none", the scale is that of the least squared error at each step.
    """

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates the thresholds of the channels."""
        if self.range_gradient != "none":
            self.threshold = Threshold(
                self.bits,
                kernel().shape[-1:],
                first=lambda: best_exponent(kernel(), self.bits) - 0.5,
            )
            self.threshold.build()
        WeightQuantizer.start(self, kernel)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """The powers of two, `(channels,)`."""
        kernel = tf.stop_gradient(kernel)
        if self.range_gradient == "none":
            exponent = tf.maximum(best_exponent(kernel, self.bits), LEAST)
            return scales.power(exponent - (self.bits - 1))
        largest = scales.log2(_largest(kernel))
        return self.threshold.scale(largest - BELOW, largest + ABOVE)

    def range(self, kernel: tf.Tensor) -> tf.Tensor:
        """The values of the highest codes, `(channels,)`."""
        return self.scale(kernel) * (2.0 ** (self.bits - 1) - 1.0)

    def assign_range(self, high: Any) -> None:
        """Sets the thresholds to the least powers of two that hold such values."""
        self.threshold.assign(tf.maximum(tf.cast(high, tf.float32), NARROWEST))
        self.threshold.centre()


def activation_quantizer(
    bits: int, range_gradient: str | None, is_power_of_two: bool, **options: Any
) -> ActivationQuantizer:
    """The quantizer of an output, whose range learns as chosen, or by default."""
    if is_power_of_two:
        gradient = fake_quant.threshold_gradient(range_gradient)
        return ThresholdActivations(bits, range_gradient=gradient, **options)
    gradient = fake_quant.range_gradient_at(bits, range_gradient)
    return ActivationQuantizer(bits, range_gradient=gradient, **options)


def _largest(kernel: tf.Tensor) -> tf.Tensor:
    axes = inner_axes(kernel)
    ends = tf.reduce_max(kernel, axis=axes), -tf.reduce_min(kernel, axis=axes)
    return tf.maximum(tf.maximum(*ends), NARROWEST)


@shared
def best_exponent(kernel: tf.Tensor, bits: int) -> tf.Tensor:
    """The whole `log2 t` of the least squared error of each channel, `(channels,)`."""
    codes = 2.0 ** (bits - 1) - 1.0
    largest = scales.ceil_log2(_largest(kernel))

    # For one at a time: all at once would take as many times the kernel's memory.
    def error(below: tf.Tensor) -> tf.Tensor:
        step = scales.power(largest - below - (bits - 1))
        rounded = tf.clip_by_value(tf.round(kernel / step), -codes, codes) * step
        # Squares of tiny weights would be 0 in float32. By a power of two, which rounds nothing.
        apart = (kernel - rounded) / scales.power(largest)
        return tf.reduce_sum(tf.square(apart), axis=inner_axes(kernel))

    # Of equal errors the largest scale.
    tried = tf.range(-ABOVE, BELOW + 1.0)
    return largest - tf.gather(tried, tf.argmin(tf.map_fn(error, tried), axis=0))
