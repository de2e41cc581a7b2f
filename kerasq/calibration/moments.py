"""Mean, variance and ends of tensors without data: functions of values that are normal."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Places and weights of the trapezoidal rule over the standard normal density. Behind a kink, such
# as a ReLU's, it is closer than Gauss-Hermite's of as many places; for smooth functions both
# converge exponentially (Trefethen & Weideman 2014, SIAM Review 56, section 12).
_PLACES = np.linspace(-6.0, 6.0, 49)
_WEIGHTS = np.exp(-np.square(_PLACES) / 2.0) / np.exp(-np.square(_PLACES) / 2.0).sum()
# How many places a function is asked at for the ends of its values.
_ASKED = 65


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Normal:
    """Values that are normal, each by itself; all float32, of the shape of one sample.

    Attributes:
        mean: of each value.
        variance: of each value.
        low, high: where each value is taken to end.
    """

    mean: tf.Tensor
    variance: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor

    @classmethod
    def within(cls, mean: tf.Tensor, variance: tf.Tensor, reach: float) -> "Normal":
        """With values up to `reach` deviations from their mean."""
        # Where differences of squares round to less than none.
        variance = tf.maximum(variance, 0.0)
        away = reach * tf.sqrt(variance)
        return cls(mean=mean, variance=variance, low=mean - away, high=mean + away)

    def cut(self, low: float, high: float) -> "Normal":
        """With ends that lie within an interval."""
        first, last = (tf.clip_by_value(end, low, high) for end in (self.low, self.high))
        return dataclasses.replace(self, low=first, high=last)


@dataclasses.dataclass(frozen=True)
class Clamp:
    """`min(max(x, low), high)`, a ReLU, or one with an upper limit."""

    low: float = 0.0
    high: float = math.inf

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """The values between both ends."""
        return tf.clip_by_value(x, self.low, self.high)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """What is known of a tensor: it is a function of values that are normal.

    Tensors that are functions of the same ones, as x and sigmoid(x) are, depend on each other, and
    are known to.

    Attributes:
        normal: those values.
        function: of each of them alone; None for the values as they are.
    """

    normal: Normal
    function: Callable[[tf.Tensor], tf.Tensor] | None = None

    def then(self, function: Callable[[tf.Tensor], tf.Tensor]) -> "Moments":
        """A function of each value of the tensor."""
        if self.function is None:
            return Moments(self.normal, function)
        return Moments(self.normal, lambda x: function(self.values(x)))

    def moved(self, move: Callable[[tf.Tensor], tf.Tensor]) -> "Moments":
        """The tensor behind a layer that only moves values, or puts zeros between them."""
        # Others than a clamp may be of some channels alone.
        keeps = self.function is None or isinstance(self.function, Clamp)
        own = self.normal if keeps else self.as_normal
        low, high = move(own.low), move(own.high)
        normal = Normal(mean=move(own.mean), variance=move(own.variance), low=low, high=high)
        return Moments(normal, self.function if keeps else None)

    def values(self, x: tf.Tensor) -> tf.Tensor:
        """The tensor where the normal values are `x`."""
        return x if self.function is None else self.function(x)

    @property
    def mean(self) -> tf.Tensor:
        """Of each value of a sample: float32."""
        return self._moments[0]

    @property
    def variance(self) -> tf.Tensor:
        """Of each value of a sample: float32."""
        return self._moments[1]

    @functools.cached_property
    def _moments(self) -> tuple[tf.Tensor, tf.Tensor]:
        own = self.normal
        if self.function is None:
            return own.mean, own.variance
        if isinstance(self.function, Clamp):
            return clipped(own.mean, own.variance, self.function.low, self.function.high)
        return integrated(own.mean, own.variance, self.function)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value of the tensor."""
        own = self.as_normal
        return float(tf.reduce_min(own.low)), float(tf.reduce_max(own.high))

    @functools.cached_property
    def as_normal(self) -> Normal:
        """Mean, variance and ends of the tensor's own values, which then pass for normal ones."""
        own, function = self.normal, self.function
        if function is None:
            return own
        if isinstance(function, Clamp):
            low, high = function(own.low), function(own.high)
        else:
            # Functions rise and fall, as that of SiLU does.
            shares = map(float, np.linspace(0.0, 1.0, _ASKED))
            found = [function(own.low + share * (own.high - own.low)) for share in shares]
            low, high = functools.reduce(tf.minimum, found), functools.reduce(tf.maximum, found)
        return Normal(mean=self.mean, variance=self.variance, low=low, high=high)


def clipped(
    mean: tf.Tensor, variance: tf.Tensor, low: float, high: float = math.inf
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of `min(max(x, low), high)` for a normal x.

    With a = (low - mu) / s, b = (high - mu) / s, phi and Phi the density and distribution of the
    standard normal, and Z = Phi(b) - Phi(a) (Nagel et al. 2019, arXiv 1906.04721, appendix C):

        E[y]   = low Phi(a) + high (1 - Phi(b)) + mu Z + s (phi(a) - phi(b))
        Var[y] = (low - E[y])^2 Phi(a) + (high - E[y])^2 (1 - Phi(b))
                 + ((mu - E[y])^2 + s^2) Z + 2 (mu - E[y]) s (phi(a) - phi(b))
                 + s^2 (a phi(a) - b phi(b))

    Args:
        mean: of x, any shape.
        variance: of x, the same shape.
        low: the lower limit.
        high: the upper one, which may be infinite.

    Returns:
        Both, of that shape and type.
    """
    mu, s = tf.cast(mean, tf.float64), tf.sqrt(tf.cast(variance, tf.float64))
    # Without a deviation a value lies wholly on one side.
    s = tf.maximum(s, 1e-30)
    a, b = (low - mu) / s, (high - mu) / s
    (density_a, below_a, slope_a), (density_b, below_b, slope_b) = _at(a), _at(b)
    inside, apart = below_b - below_a, s * (density_a - density_b)
    above = _at(-b)[1]
    # Of an end that is infinite nothing lies beyond.
    upper = high if math.isfinite(high) else 0.0
    first = low * below_a + upper * above + mu * inside + apart
    off = mu - first
    second = (
        (low - first) ** 2 * below_a
        + (upper - first) ** 2 * above
        + (off**2 + s**2) * inside
        + 2.0 * off * apart
        + s**2 * (slope_a - slope_b)
    )
    return tf.cast(first, mean.dtype), tf.cast(tf.maximum(second, 0.0), mean.dtype)


def _at(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """phi(z), Phi(z) and z phi(z) of the standard normal."""
    density = tf.exp(-tf.square(z) / 2.0) / math.sqrt(2.0 * math.pi)
    return density, tf.math.erfc(-z / math.sqrt(2.0)) / 2.0, tf.math.multiply_no_nan(z, density)


def integrated(
    mean: tf.Tensor, variance: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of a function of each value, for normal values, numerically.

    Args:
        mean: of the values, any shape.
        variance: of the values, the same shape.
        function: of each of them alone.

    Returns:
        Both, of the shape of what the function returns: float32.
    """
    deviation = tf.sqrt(variance)
    # Around the value at the mean, so that little is lost where the deviation is small.
    centre = tf.cast(function(mean), tf.float64)
    first = second = tf.zeros_like(centre)
    for place, weight in zip(_PLACES, _WEIGHTS, strict=True):
        away = tf.cast(function(mean + float(place) * deviation), tf.float64) - centre
        first += weight * away
        second += weight * tf.square(away)
    spread = tf.maximum(second - tf.square(first), 0.0)
    return tf.cast(centre + first, tf.float32), tf.cast(spread, tf.float32)
