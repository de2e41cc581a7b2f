"""Weight quantizers: how the kernel of a layer lies on integer codes, and how that is trained.

All are symmetric with one scale a channel (LiteRT quantization specification, per-channel weights).
Narrow weights are int8 codes on the device, or packed INT4 where all of them fit 4 bits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, kernels
from kerasq.grid import Grid
from kerasq.quantizers.activations import NARROWEST, UpperEnd, project

# What stands in `PowerOfTwo.frozen` for a weight that is still trained.
FREE = -128.0
# Exponents that int8 holds: codes 1, 2, 4, ..., 64.
_EXPONENTS = 7
# Shares of the mean (Li & Liu 2016, equation 6) and of the largest magnitude (Zhu et al. 2017,
# equation 9) below which ternary weights are 0.
_TWN_THRESHOLD = 0.7
_TTQ_THRESHOLD = 0.05


class WeightQuantizer(keras.layers.Layer):
    """Base of all weight quantizers: codes of a kernel, whose channels are its last axis.

    Args:
        bits: width that the user asked for.
        range_gradient: how a range learns, where there is one: "lsq", "clip" or "none".
    """

    # Widths that there are.
    widths: range = range(8, 9)

    def __init__(self, bits: int = 8, range_gradient: str = "lsq", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bits = bits
        self.range_gradient = range_gradient

    @property
    def code_bits(self) -> int:
        """Width of the codes."""
        return self.bits

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates the variables, with first values from `kernel()`."""
        del kernel
        self.built = True

    def _parameter(
        self, name: str, shape: Any, value: Callable[[], Any], **options: Any
    ) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=lambda *_, **__: value(),
            aggregation="mean",
            autocast=False,
            **options,
        )

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """Step between two codes, `(channels,)`, float32."""
        raise NotImplementedError

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """The codes of a kernel, as floats."""
        raise NotImplementedError

    def fake_quant(self, kernel: tf.Tensor, gain: Any = 1.0) -> tf.Tensor:
        """`gain` times the kernel on its grid; differentiable."""
        exact = self.codes(kernel) * self.scale(kernel)
        return gain * fake_quant.straight_through(self.smooth(kernel), exact)

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """What the gradient of `fake_quant` is that of."""
        return kernel

    def integer(self, kernel: tf.Tensor, gain: tf.Tensor, least: tf.Tensor) -> tuple:
        """Codes of `kernel * gain` (float32) and their grid.

        Args:
            kernel: the float kernel.
            gain: a factor, or one a channel; negative ones turn the signs of codes.
            least: no scale is below it, `(channels,)`; codes are rounded again where one would be.
        """
        own = self.scale(kernel) * tf.abs(gain)
        grid = Grid(
            scale=tf.maximum(tf.maximum(own, least), NARROWEST / 127),
            zero_point=tf.zeros_like(own),
            bits=self.code_bits,
            narrow=True,
            axis=-1,
        )
        ratio = tf.cast(own, tf.float64) / tf.cast(grid.scale, tf.float64)
        codes = tf.cast(self.codes(kernel) * tf.sign(gain), tf.float64)
        return kernels.clip(tf.round(codes * ratio), grid), grid


class Uniform(WeightQuantizer):
    """Equal steps between -high and high, one range a channel, which may learn.

    `code = round(w / scale)`, `scale = high / (2^(bits-1) - 1)`. LSQ (Esser et al. 2020), but with
    as many codes below 0 as above, as LiteRT's specification has weights: -1, 0, 1 at 2 bits.
    """

    widths = range(2, 9)

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `kernel_range`, the largest magnitude of each channel."""
        if self.range_gradient != "none":
            self.kernel_range = self._parameter(
                "kernel_range",
                (kernel().shape[-1],),
                lambda: weight_range(kernel(), self.bits),
                constraint=UpperEnd(),
            )
        super().start(kernel)

    def range(self, kernel: tf.Tensor) -> tf.Tensor:
        """The range of each channel; under "none" it follows the weights."""
        if self.range_gradient == "none":
            return tf.stop_gradient(weight_range(kernel, self.bits))
        return project(self.kernel_range.value, UpperEnd())

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return _step(self.range(kernel), 2 ** (self.bits - 1) - 1)

    def fake_quant(self, kernel: tf.Tensor, gain: Any = 1.0) -> tf.Tensor:
        """See `kerasq.fake_quant.fake_quant_per_channel`."""
        return fake_quant.fake_quant_per_channel(
            kernel, self.range(kernel), bits=self.bits, gradient=self.range_gradient, gain=gain
        )

    def integer(self, kernel: tf.Tensor, gain: tf.Tensor, least: tf.Tensor) -> tuple:
        """The product is formed in double precision before it is rounded once."""
        high = tf.maximum(self.range(kernel) * tf.abs(gain), NARROWEST)
        grid = fake_quant.grid_from_range(-high, high, self.bits, narrow=True, axis=-1)
        grid = dataclasses.replace(grid, scale=tf.maximum(grid.scale, least))
        exact = tf.cast(kernel, tf.float64) * tf.cast(gain, tf.float64)
        return kernels.quantize_weights(exact, grid), grid


class DoReFa(WeightQuantizer):
    """Steps between odd codes, denser use of them by tanh: no weight is 0.

    With `t = tanh(w) / m`, `m = max |tanh(w)|` over the kernel, and `n = 2^bits - 1`:

        w_q = m (2 round(n (t / 2 + 1/2)) / n - 1)          (Zhou S. et al. 2016, equation 9)

    `m` is kept in the result, so that a trained kernel stays in its units. The codes are odd
    integers in [-n, n]: one bit wider than `bits`.
    """

    widths = range(2, 8)

    @property
    def code_bits(self) -> int:
        """One more than asked for."""
        return self.bits + 1

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`m / n`, the same for all channels."""
        largest = tf.maximum(tf.reduce_max(tf.abs(tf.tanh(kernel))), NARROWEST)
        return tf.fill(kernel.shape[-1:], _step(tf.stop_gradient(largest), 2**self.bits - 1))

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """Odd integers."""
        levels = 2**self.bits - 1
        return 2 * tf.round((tf.tanh(kernel) / self.scale(kernel) + levels) / 2) - levels

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return tf.tanh(kernel)


class Binary(WeightQuantizer):
    """`w_q = sign(w) * mean |w|`, a mean a channel (Rastegari et al. 2016, equation 6).

    The gradient is the straight-through one, of slope 1 (Courbariaux et al. 2015).
    """

    widths = range(1, 2)

    @property
    def code_bits(self) -> int:
        """-1 and 1 take two bits."""
        return 2

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """The mean magnitude of a channel."""
        return tf.maximum(
            tf.stop_gradient(tf.reduce_mean(tf.abs(kernel), _inner(kernel))), NARROWEST
        )

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-1 and 1."""
        return tf.where(kernel < 0.0, -1.0, 1.0)


class Ternary(WeightQuantizer):
    """TWN: -a, 0 and a, a channel (Li & Liu 2016, equations 5 and 6).

    Zero where `|w| <= 0.7 mean |w|`; `a` is the mean magnitude of the others.
    """

    widths = range(2, 3)

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-1, 0 and 1."""
        threshold = _TWN_THRESHOLD * tf.reduce_mean(tf.abs(kernel), _inner(kernel))
        return _signs(kernel, threshold)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`a`."""
        return tf.maximum(
            tf.stop_gradient(_mean_where(kernel, self.codes(kernel) != 0.0)), NARROWEST
        )


class TrainedTernary(WeightQuantizer):
    """TTQ: -n, 0 and p, both learned, a channel (Zhu et al. 2017, section 4: a layer).

    Zero where `|w| <= 0.05 max |w|`. The smaller of n and p is rounded to a 127th of the larger
    one, since codes are symmetric: p = 127 and n = round(127 n / p), or the other way round.
    """

    widths = range(2, 3)

    @property
    def code_bits(self) -> int:
        """Two different magnitudes want all of int8."""
        return 8

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `positive` and `negative`, the two magnitudes of each channel."""
        for name, sign in (("positive", 1.0), ("negative", -1.0)):
            value = lambda sign=sign: _mean_where(kernel(), self._signs(kernel()) == sign)  # noqa: E731
            shape = (kernel().shape[-1],)
            setattr(self, name, self._parameter(name, shape, value, constraint=UpperEnd()))
        super().start(kernel)

    def _signs(self, kernel: tf.Tensor) -> tf.Tensor:
        threshold = _TTQ_THRESHOLD * tf.reduce_max(tf.abs(kernel), _inner(kernel))
        return _signs(kernel, threshold)

    def _magnitudes(self) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(project(v.value, UpperEnd()) for v in (self.positive, self.negative))

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """A 127th of the larger magnitude."""
        return _step(tf.stop_gradient(tf.maximum(*self._magnitudes())), 127)

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """-127..127, three of them a channel."""
        positive, negative = (tf.round(v / self.scale(kernel)) for v in self._magnitudes())
        signs = self._signs(kernel)
        return tf.where(signs > 0.0, positive, tf.where(signs < 0.0, -negative, 0.0))

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """Has the gradients of equations 7 and 8, weights in units of their largest magnitude."""
        positive, negative = self._magnitudes()
        signs = self._signs(kernel)
        above, below = (tf.cast(signs == sign, kernel.dtype) for sign in (1.0, -1.0))
        largest = tf.maximum(tf.reduce_max(tf.abs(kernel), _inner(kernel)), NARROWEST)
        slope = tf.stop_gradient(above * positive + below * negative) / largest
        slope = tf.where(signs == 0.0, 1.0, slope)
        smooth = above * positive - below * negative
        return smooth + tf.stop_gradient(slope) * (kernel - tf.stop_gradient(kernel))


class PowerOfTwo(WeightQuantizer):
    """INQ: weights that are frozen are 0 or +-2^n, the others still int8 (Zhou A. et al. 2017).

    `kerasq.IncrementalQuantization` freezes them, a part at a time. With n1 the highest exponent of
    a channel, `n1 = floor(log2(4 max |w| / 3))`, and n2 = n1 + 1 - 2^(bits-2) the lowest:

        2^n  where  3/4 2^n <= |w| < 3/2 2^n,   2^n2 from 1/2 2^n2 on,   0 below   (equation 4)

    The scale is 2^(n1 - 6), so that all of them, and what is not frozen yet, are int8 codes. int8
    holds seven exponents, 2^0 to 2^6, so that at 5 bits the smallest of INQ's eight is left out.
    """

    widths = range(2, 6)

    @property
    def code_bits(self) -> int:
        """Powers of two up to 64."""
        return 8

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates `exponent`, n1 of each channel, and `frozen`, the codes that are settled."""
        shape = kernel().shape
        self.exponent = self._parameter(
            "exponent", shape[-1:], lambda: highest_exponent(kernel()), trainable=False
        )
        # Floats, since workers cannot send each other int8 variables (TensorFlow 2.21).
        self.frozen = self._parameter(
            "frozen", shape, lambda: tf.fill(shape, FREE), trainable=False
        )
        super().start(kernel)

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """`2^(n1 - 6)`, exactly."""
        del kernel
        return _power(self.exponent.value - (_EXPONENTS - 1))

    def is_frozen(self) -> tf.Tensor:
        """Which weights are settled."""
        return self.frozen.value != FREE

    def powers(self, kernel: tf.Tensor) -> tf.Tensor:
        """The codes that weights get when they are frozen: 0 or +-2^k, k up to 6."""
        size = tf.abs(kernel) / self.scale(kernel)
        span = min(2 ** (self.bits - 2), _EXPONENTS)
        lowest = _EXPONENTS - span
        exponent = _floor_log2(tf.maximum(size, 1e-30) / 0.75)
        exponent = tf.clip_by_value(exponent, float(lowest), float(_EXPONENTS - 1))
        codes = tf.where(size < 2.0**lowest / 2, 0.0, _power(exponent))
        return tf.sign(kernel) * codes

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """What is settled, and the nearest int8 code of the rest."""
        free = tf.clip_by_value(tf.round(kernel / self.scale(kernel)), -127.0, 127.0)
        return tf.where(self.is_frozen(), self.frozen.value, free)

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """Settled weights get no gradient."""
        return tf.where(self.is_frozen(), tf.stop_gradient(kernel), kernel)

    def settled(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel, its settled weights at their exact values: undoes decay and momentum."""
        exact = self.frozen.value * self.scale(kernel)
        return tf.where(self.is_frozen(), exact, kernel)


WEIGHTS: dict[str, type[WeightQuantizer]] = {
    "uniform": Uniform,
    "dorefa": DoReFa,
    "ternary": Ternary,
    "trained_ternary": TrainedTernary,
    "power_of_two": PowerOfTwo,
}


def weight_quantizer(kind: str, bits: int, range_gradient: str) -> WeightQuantizer:
    """The quantizer of a kernel: `kind` below 8 bits, uniform at 8, binary at 1.

    Raises:
        ValueError: for a kind that there is not, or not at that width.
    """
    found = {1: Binary, 8: Uniform}.get(bits, WEIGHTS[kind])
    if bits not in found.widths:
        raise ValueError(
            f"Weights of kind {kind!r} must have a width in {[*found.widths]}. "
            f"Received: {bits} bits. Choose another scheme, or other `weights`."
        )
    options = {"range_gradient": range_gradient, "name": "weights", "dtype": "float32"}
    return found(bits=bits, **options)


def _inner(kernel: tf.Tensor) -> list[int]:
    """All axes but that of the channels."""
    return list(range(kernel.shape.rank - 1))


def _signs(kernel: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """-1, 0 and 1; 0 where magnitudes are not above the threshold."""
    return tf.sign(kernel) * tf.cast(tf.abs(kernel) > threshold, kernel.dtype)


def _step(high: tf.Tensor, steps: int) -> tf.Tensor:
    """`high / steps`, the same eagerly and in a graph, where float32 is multiplied by 1 / steps."""
    return tf.cast(tf.cast(high, tf.float64) / steps, tf.float32)


def _mean_where(kernel: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """The mean magnitude, a channel, of the weights that are chosen."""
    count = tf.reduce_sum(tf.cast(chosen, kernel.dtype), _inner(kernel))
    total = tf.reduce_sum(tf.where(chosen, tf.abs(kernel), 0.0), _inner(kernel))
    return total / tf.maximum(count, 1.0)


def _floor_log2(x: tf.Tensor) -> tf.Tensor:
    """`floor(log2(x))` of normal float32 values above 0, exactly: their exponent."""
    return tf.cast(tf.bitwise.right_shift(tf.bitcast(x, tf.int32), 23) - 127, tf.float32)


def _power(exponent: tf.Tensor) -> tf.Tensor:
    """2^n for whole n in [-126, 127], exactly: TensorFlow's pow is off by a bit for some."""
    return tf.bitcast(tf.bitwise.left_shift(tf.cast(exponent, tf.int32) + 127, 23), tf.float32)


def highest_exponent(kernel: tf.Tensor) -> tf.Tensor:
    """`n1 = floor(log2(4 s / 3))` of each channel, s its largest magnitude (equation 3)."""
    largest = tf.maximum(tf.reduce_max(tf.abs(kernel), _inner(kernel)), NARROWEST)
    return _floor_log2(largest * 4.0 / 3.0)


def weight_range(kernel: tf.Tensor, bits: int = 8) -> tf.Tensor:
    """The range of each channel (last axis) of a kernel, shape `(channels,)`.

    The largest magnitude; below 8 bits the share of it, from 0.3 to 1, that has the least
    squared error after quantization (Nagel et al. 2021, arXiv 2106.08295, section 3.1).
    """
    axes = _inner(kernel)
    largest = tf.maximum(tf.reduce_max(tf.abs(kernel), axis=axes), NARROWEST)
    if bits >= 8:
        return largest
    levels = 2.0 ** (bits - 1) - 1
    shares = tf.linspace(0.3, 1.0, 36)

    def error(share: tf.Tensor) -> tf.Tensor:
        step = largest * share / levels
        quantized = tf.clip_by_value(tf.round(kernel / step), -levels, levels) * step
        return tf.reduce_sum(tf.square(kernel - quantized), axis=axes)

    best = tf.argmin(tf.map_fn(error, shares), axis=0)
    return tf.maximum(largest * tf.gather(shares, best), NARROWEST)
