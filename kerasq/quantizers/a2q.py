"""Weights whose sums fit narrow accumulators, whatever the input: A2Q."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant
from kerasq.kernels.floats import float64
from kerasq.quantizers.activations import NARROWEST, UpperEnd, project
from kerasq.quantizers.base import WeightQuantizer, inner_axes, step_of
from kerasq.support.shared import shared

NARROWEST_SUMS, WIDEST_SUMS = 8, 32
# Scales of a range that follows that are tried.
SEARCH = 10
# How far codes of 8 bits lie from the zero point at most: of a quantizer that no wrapper has.
FARTHEST = 255.0


def check_accumulator_bits(bits: int) -> None:
    """Raises a ValueError for a width that accumulators cannot have."""
    if not isinstance(bits, int) or not NARROWEST_SUMS <= bits <= WIDEST_SUMS:
        raise ValueError(
            f"`accumulator_bits` must be an integer in [{NARROWEST_SUMS}, {WIDEST_SUMS}]. "
            f"Received: accumulator_bits={bits!r}."
        )


@keras.saving.register_keras_serializable("kerasq")
class A2Q(WeightQuantizer):
    """Weights whose sums fit accumulators of P bits, whatever the input.

    With codes x of the input, their zero point z, the farthest code `m = max |x - z|`, codes w of
    the weights and b of the bias, no sum overflows, in whatever order it is taken, where each
    channel has, where norm(w) is the sum of magnitudes, `|w|_1`,

        norm(w) <= T = (2^(P-1) - 1 - abs(b)) / m

    Colbert et al. 2023 (arXiv 2308.13504) have 2^N as m for unsigned inputs of N bits and 2^(N-1)
    for signed ones, and no bias; here m is that of the grid, up to 255 at 8 bits. As there, weights
    are a direction v (the kernel), a norm g and a scale s of each channel,

        w = clip(trunc(g v / norm(v) / s), -n, n),  w_q = s w,  g <= s T,  n = 2^(bits-1) - 1

    rounded towards zero, so that rounding adds to no norm. The bias counts as it is at the moment,
    with BatchNormalization folded, and takes half of the accumulator at most: s grows with it.

    By default (and under "none") `g = |v|_1`, and s is about the least that holds the largest
    weight and whose *rounded* norm keeps to the bound: both follow the weights, dL/dv is the
    incoming gradient, and the bound is used up.

    Under "lsq" or "clip" s and g are learned, as in the paper, whose bound is that of the norm
    before it is rounded: weights below their mean magnitude times (number of weights) / T become 0,
    which may be all (see also Colbert et al. 2024, arXiv 2401.10432). They are `kernel_range = n s`
    and `kernel_magnitude`, the norm over the number of weights, with `g = min(norm, s T)`; the
    gradients are those of the formula, with that of trunc as 1, and scaled as LSQ's are, so that no
    logarithms are needed (the paper learns log2 s and log2 norm). The loss then has the paper's
    penalty, summed over channels:

        penalty * max(log2(norm) - log2(s T), 0)

    `kerasq.fixed_point` shows that nothing overflows, and what it costs.

    Args:
        accumulator_bits: P, sign included, in [8, 32].
        penalty: what the loss has of a norm that is learned, for each bit above its bound.
        **kwargs: see `WeightQuantizer`.

    Raises:
        ValueError: for another width, or a penalty below 0.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> q = kerasq.quantize_model(model, weights=kerasq.A2Q(accumulator_bits=16))
    """

    widths = range(2, 9)

    def __init__(self, accumulator_bits: int = 16, penalty: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_accumulator_bits(accumulator_bits)
        if penalty < 0.0:
            raise ValueError(f"`penalty` must be at least 0. Received: penalty={penalty!r}.")
        self.accumulator_bits, self.penalty = accumulator_bits, penalty
        # What the wrapper knows: m, and how much the bias is in sums of codes and real weights.
        self.room: Callable[[], tuple[Any, Any]] = lambda: (FARTHEST, 0.0)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"accumulator_bits": self.accumulator_bits, "penalty": self.penalty}
        return {**super().get_config(), **own}

    @property
    def largest_sum(self) -> float:
        """The largest sum, less what rounding of the bias and of scales may add."""
        return (2.0 ** (self.accumulator_bits - 1) - 1.0) * (1.0 - 2.0**-20) - 1.0

    @property
    def bias_limit(self) -> float:
        """Half of the accumulator."""
        return self.largest_sum / 2.0

    @property
    def _largest_code(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `kernel_range` and `kernel_magnitude`, `(channels,)`, where they are learned."""
        if self.range_gradient != "none":
            shape = (kernel().shape[-1],)
            ends = {"constraint": UpperEnd()}
            self.kernel_range = self.parameter(
                "kernel_range",
                shape,
                # At a scale that the whole norm fits.
                value=lambda: self._following(kernel(), 0.0, tries=0) * self._largest_code,
                **ends,
            )
            self.kernel_magnitude = self.parameter(
                "kernel_magnitude",
                shape,
                value=lambda: tf.cast(_norm(kernel()) / _count(kernel()), tf.float32),
                **ends,
            )
        super().start(kernel)

    def _following(self, kernel: tf.Tensor, bias: Any, tries: int = SEARCH) -> tf.Tensor:
        """The least scale that holds the largest weight, and whose codes keep to the bound."""
        farthest, _ = self.room()
        kernel = tf.stop_gradient(kernel)
        bias = tf.zeros(kernel.shape[-1:]) + bias
        own = {"limit": self.largest_sum, "largest": self._largest_code, "tries": tries}
        return _search(kernel, tf.cast(farthest, tf.float32), bias, **own)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """s, `(channels,)`."""
        _, bias = self.room()
        if self.range_gradient == "none":
            return self._following(kernel, bias)
        high = _with_gradient(project(self.kernel_range, UpperEnd()), self._share(kernel))
        return tf.maximum(step_of(high, self._largest_code), bias / self.bias_limit)

    def _share(self, kernel: tf.Tensor) -> float:
        """LSQ's factor: `1 / sqrt(weights n)`."""
        return float((_count(kernel) * self._largest_code) ** -0.5)

    def norms(self, kernel: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The norm of each channel, and what it may be at most, `s T`; `(channels,)`, float64."""
        farthest, bias = self.room()
        most = (float64(scale) * self.largest_sum - float64(bias)) / float64(farthest)
        if self.range_gradient == "none":
            return _norm(kernel), most
        count = _count(kernel)
        mean = _with_gradient(project(self.kernel_magnitude, UpperEnd()), count**-0.5)
        return float64(mean) * count, most

    def _exact(self, kernel: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """What is rounded, in codes, same shape, float64; with gradients where it is learned."""
        kernel = float64(kernel)
        if self.range_gradient != "none":
            own, most = self.norms(kernel, scale)
            kernel = kernel * tf.math.divide_no_nan(tf.minimum(own, most), _norm(kernel))
        largest = float(self._largest_code)
        return tf.clip_by_value(kernel / float64(scale), -largest, largest)

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """`clip(trunc(g v / |v|_1 / s), -n, n)`."""
        return _truncated(self._exact(kernel, self.scale(kernel)))

    def fake_quant(self, kernel: tf.Tensor, gain: Any = 1.0) -> tf.Tensor:
        """`gain` times the kernel on its grid, with the gradients that the class states."""
        scale = self.scale(kernel)
        if self.range_gradient == "none":
            codes = _truncated(self._exact(kernel, scale))
            return gain * fake_quant.straight_through(kernel, codes * scale)
        exact = tf.cast(self._exact(kernel, scale), tf.float32)
        codes = _truncated(self._exact(kernel, tf.stop_gradient(scale)))
        smooth = scale * (exact + tf.stop_gradient(codes - exact))
        return gain * fake_quant.straight_through(smooth, codes * tf.stop_gradient(scale))

    def loss(self, kernel: tf.Tensor) -> tf.Tensor | None:
        """The penalty, a scalar; None where nothing is learned."""
        if self.range_gradient == "none" or not self.penalty:
            return None
        own, most = self.norms(kernel, self.scale(kernel))
        beyond = tf.maximum(tf.math.log(own) - tf.math.log(most), 0.0) / tf.math.log(float64(2.0))
        return self.penalty * tf.cast(tf.reduce_sum(beyond), tf.float32)


@shared
def _search(
    kernel: tf.Tensor,
    farthest: tf.Tensor,
    bias: tf.Tensor,
    *,
    limit: float,
    largest: int,
    tries: int,
) -> tf.Tensor:
    """The scale of a range that follows, `(channels,)`: see `A2Q`."""
    axes = inner_axes(kernel)
    most_weight = tf.maximum(tf.reduce_max(tf.abs(kernel), axes), NARROWEST)
    least = tf.maximum(step_of(most_weight, largest), bias * (2.0 / limit))
    sizes, farthest, bias = tf.abs(float64(kernel)), float64(farthest), float64(bias)
    # By the real norm, which is never below that of what is rounded towards zero; a bit above, for
    # the rounding to float32.
    safe = (tf.reduce_sum(sizes, axes) * farthest + bias) / limit * (1.0 + 2.0**-22)
    most = tf.maximum(tf.cast(safe, tf.float32), least)
    for i in range(tries):
        middle = least if i == 0 else tf.sqrt(least) * tf.sqrt(most)
        codes = tf.floor(sizes / float64(middle))
        fits = tf.reduce_sum(codes, axes) * farthest + bias / float64(middle) <= limit
        # The upper end fits throughout.
        least, most = tf.where(fits, least, middle), tf.where(fits, middle, most)
    return most


def _norm(kernel: tf.Tensor) -> tf.Tensor:
    """`|v|_1` of each channel, float64."""
    return tf.reduce_sum(tf.abs(float64(kernel)), inner_axes(kernel))


def _count(kernel: tf.Tensor) -> float:
    """The weights of a channel."""
    return float(kernel.shape.num_elements() // kernel.shape[-1])


def _truncated(x: tf.Tensor) -> tf.Tensor:
    """Rounded towards zero, as float32."""
    x = tf.stop_gradient(x)
    return tf.cast(tf.sign(x) * tf.floor(tf.abs(x)), tf.float32)


def _with_gradient(x: tf.Tensor, factor: float) -> tf.Tensor:
    """`x`, whose gradient is multiplied by a factor."""
    kept = tf.stop_gradient(x)
    return kept + factor * (x - kept)
