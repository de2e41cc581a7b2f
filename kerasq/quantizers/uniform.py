"""Weights on equal steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, kernels, scales
from kerasq.grid import Grid
from kerasq.quantizers.activations import NARROWEST, UpperEnd, project
from kerasq.quantizers.base import WeightQuantizer, inner_axes, step_of
from kerasq.support.shared import shared


@keras.saving.register_keras_serializable("kerasq")
class Uniform(WeightQuantizer):
    """Equal steps between -high and high, one range a channel, which may learn.

    `w_q = scale * clip(round(w / scale), -n, n)`, `scale = high / n`, `n = 2^(bits-1) - 1`. That is
    LSQ (Esser et al. 2020), but with as many codes below 0 as above, as LiteRT's specification has
    weights: -1, 0, 1 at 2 bits.

    Gradients, with g the incoming one: dL/dw = g where `|w| <= high`, else 0. dL/dhigh is the sum
    of `g sign(w)` where `|w| > high` ("clip": PACT, Choi et al. 2018, equation 3); "lsq" adds the
    sum of `g (w_q - w) / high` inside, and scales by LSQ's factor (Esser et al. 2020, sections 2.1
    and 2.2; `kerasq.fake_quant.fake_quant`). Under "none", high follows the weights.
    """

    widths = range(2, 9)

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `kernel_range`, the largest magnitude of each channel."""
        if self.range_gradient != "none":
            self.kernel_range = self.parameter(
                "kernel_range",
                (kernel().shape[-1],),
                value=lambda: weight_range(kernel(), self.bits),
                constraint=UpperEnd(),
            )
        super().start(kernel)

    def range(self, kernel: tf.Tensor) -> tf.Tensor:
        """The range of each channel; under "none" it follows the weights."""
        if self.range_gradient == "none":
            return weight_range(kernel, self.bits)
        return project(self.kernel_range, UpperEnd())

    def assign_range(self, high: Any) -> None:
        """Sets the range of each channel, `(channels,)`, where it is a variable."""
        self.kernel_range.assign(high)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`high / (2^(bits-1) - 1)`, `(channels,)`."""
        return step_of(self.range(kernel), 2 ** (self.bits - 1) - 1)

    def fake_quant(self, kernel: tf.Tensor, gain: Any = 1.0) -> tf.Tensor:
        """`gain` times the kernel on its grid, with the gradients that the class states."""
        return fake_quant.fake_quant_per_channel(
            kernel,
            self.range(kernel),
            bits=self.bits,
            gradient=self.range_gradient,
            gain=gain,
            # A range that is the largest weight of today.
            clips=self.range_gradient != "none" or self.bits < 8,
        )

    def parts(self, kernel: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The range of each channel."""
        return (self.range(kernel),)

    @staticmethod
    def fold(
        kernel: tf.Tensor,
        gain: tf.Tensor,
        *,
        least: tf.Tensor,
        parts: tuple[tf.Tensor, ...],
        bits: int,
    ) -> tuple[tf.Tensor, Grid]:
        """As in the base, but the product is rounded once, from float64."""
        # A gain of 0 leaves no range.
        high = tf.maximum(parts[0] * tf.abs(gain), NARROWEST)
        grid = fake_quant.grid_from_range(-high, high, bits, narrow=True, axis=-1)
        grid = dataclasses.replace(grid, scale=tf.maximum(grid.scale, least))
        # In float32 the product could be rounded onto a tie, or over it.
        exact = tf.cast(kernel, tf.float64) * tf.cast(gain, tf.float64)
        return kernels.quantize_weights(exact, grid), grid


def weight_range(kernel: tf.Tensor, bits: int = 8) -> tf.Tensor:
    """The range of each channel (last axis) of a kernel, shape `(channels,)`, without gradient.

    The largest magnitude; below 8 bits the share of it, from 0.3 to 1, that has the least
    squared error after quantization (Nagel et al. 2021, arXiv 2106.08295, section 3.1).
    """
    return _weight_range(tf.stop_gradient(kernel), bits)


@shared
def _weight_range(kernel: tf.Tensor, bits: int) -> tf.Tensor:
    axes = inner_axes(kernel)
    # Without magnitudes in memory: it is computed in each step where ranges follow.
    ends = tf.reduce_max(kernel, axis=axes), -tf.reduce_min(kernel, axis=axes)
    largest = tf.maximum(tf.maximum(*ends), NARROWEST)
    if bits >= 8:
        return largest
    levels = 2.0 ** (bits - 1) - 1
    shares = tf.linspace(0.3, 1.0, 36)
    # Squares of tiny weights would be 0 in float32. By a power of two, which rounds nothing.
    size = scales.power(scales.floor_log2(largest))
    kernel, largest = kernel / size, largest / size

    # For one share at a time: all at once would take 36 times the kernel's memory.
    def error(share: tf.Tensor) -> tf.Tensor:
        step = largest * share / levels
        quantized = tf.clip_by_value(tf.round(kernel / step), -levels, levels) * step
        return tf.reduce_sum(tf.square(kernel - quantized), axis=axes)

    best = tf.argmin(tf.map_fn(error, shares), axis=0)
    return tf.maximum(largest * tf.gather(shares, best) * size, NARROWEST)
