"""Ranges of the least expected error, where values are normal or Laplace's: ACIQ."""

import math
from collections.abc import Callable

import keras
import numpy as np

from kerasq.calibration.histogram import Histogram


@keras.saving.register_keras_serializable("kerasq")
class Aciq(Histogram):
    """Range of the least expected squared error of values of a known distribution.

    `[mean - alpha, mean + alpha]`, within the least and greatest value, where alpha is that of the
    least error by clipping and by rounding to M bits (Banner et al. 2019, arXiv 1810.05723)::

        Laplace, b = E|x - mean|:  2 b^2 exp(-alpha / b) + alpha^2 / (3 * 4^M)
        normal, s^2 = E(x - mean)^2:  (alpha^2 + s^2) (1 - erf(alpha / (sqrt(2) s)))
            + alpha^2 / (3 * 4^M) - sqrt(2 / pi) alpha s exp(-alpha^2 / (2 s^2))

    Of the two the one is taken under which the values are more likely: -log(2 e b) a value against
    -log(2 pi e s^2) / 2. Behind a ReLU, or where values have one sign, `[0, alpha]` has all codes:
    M is one more, as in the paper's section on fused ReLUs, and b and s are those of the values
    that are not 0, around 0.
    """

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The ends for a grid of so many bits."""
        if not self.is_finite or not self.low < self.high:
            return self.low, self.high
        x, weights = self.centres, self.counts.astype(np.float64)
        if self.is_one_sided:
            # The bins on either side of 0 hold zeros, which any grid has.
            weights = weights * (np.abs(x) > 2.0**self.exponent / self.BINS * 2)
        if not weights.any():
            return self.low, self.high
        mean = 0.0 if self.is_one_sided else np.average(x, weights=weights)
        b = float(np.average(np.abs(x - mean), weights=weights))
        s = float(np.sqrt(np.average((x - mean) ** 2, weights=weights)))
        if s == 0.0:  # All values are in one bin.
            return self.low, self.high
        codes = bits + (self.is_one_sided and not symmetric)
        # More likely where its entropy is less.
        is_normal = math.log(math.tau * math.e * s**2) / 2 < math.log(2 * math.e * b)
        alpha = normal(codes) * s if is_normal else laplace(codes) * b
        ends = np.clip([mean - alpha, mean + alpha], self.low, self.high)
        return float(ends[0]), float(ends[1])


def laplace(bits: int) -> float:
    """The alpha of the least error over b: that solves `exp(-a) = a / (3 * 4^bits)`."""
    return _root(lambda a: a / (3 * 4.0**bits) - math.exp(-a))


def normal(bits: int) -> float:
    """The alpha of the least error over s.

    It solves `a (1 - erf(a / sqrt(2))) - sqrt(2 / pi) exp(-a^2 / 2) + a / (3 * 4^bits) = 0`.
    """

    def slope(a: float) -> float:
        clipped = a * math.erfc(a / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-(a**2) / 2)
        return clipped + a / (3 * 4.0**bits)

    return _root(slope)


def _root(rising: Callable[[float], float]) -> float:
    """Where a function that rises from below 0 is 0, by halving."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low
