"""Ranges from a histogram: percentiles, and the least squared error."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.calibration.extremes import MinMax
from kerasq.grid import Grid
from kerasq.quantizers import activations
from kerasq.support.numbers import check_number


class Histogram(MinMax):
    """Histogram whose width grows by powers of two, so that bins of all batches line up.

    Bin i counts the values in `[-2^e, 2^e]` from `2^e (2 i / BINS - 1)` on, `BINS = 4096`, with the
    smallest e that holds all values.
    """

    # The range of all values takes more than a quarter of the width, so that each code of 8 bits
    # over it has 4 bins or more.
    BINS = 4096

    def __init__(self) -> None:
        super().__init__()
        self.exponent = -1000  # Below that of any value: the first batch sets it.
        self.counts = np.zeros(self.BINS, np.int64)

    def statistics(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Ends, counts, and the exponent e of the histogram's width: [-2^e, 2^e]."""
        ends = tf.reduce_min(x), tf.reduce_max(x)
        # The ends say it where values are infinite or NaN, which no bin takes. Mostly none is, and
        # each pass over all values counts.
        is_finite = tf.reduce_all(tf.math.is_finite(ends))
        x, largest = tf.cond(
            is_finite, lambda: (x, tf.maximum(-ends[0], ends[1])), lambda: _without_infinite(x)
        )
        largest = tf.maximum(largest, activations.NARROWEST)
        # Where rounding of the logarithms makes it one too small, the outermost bins hold the rest.
        exponent = tf.math.ceil(tf.math.log(largest) / tf.math.log(2.0))
        # Twice the bound is float32 as well, or TensorFlow's histogram crashes the process.
        exponent = tf.minimum(exponent, 126.0)
        bound = 2.0**exponent
        counts = tf.histogram_fixed_width(x, [-bound, bound], self.BINS, dtype=tf.int64)
        return *ends, counts, exponent

    def update(self, statistics: Sequence[np.ndarray]) -> None:
        """Adds the batch's counts, the narrower histogram widened to the other's width."""
        *ends, counts, exponent = statistics
        super().update(ends)
        widest = max(self.exponent, int(exponent))
        self.counts = self._widen(self.counts, widest - self.exponent) + self._widen(
            counts, widest - int(exponent)
        )
        self.exponent = widest

    def _widen(self, counts: np.ndarray, doublings: int) -> np.ndarray:
        """The same counts in bins twice as wide, `doublings` times."""
        # After 12 doublings all is in the middle two bins, and stays there.
        for _ in range(min(doublings, 13)):
            merged = counts.reshape(-1, 2).sum(1)
            counts = np.zeros_like(counts)
            counts[self.BINS // 4 : 3 * self.BINS // 4] = merged
        return counts

    @property
    def is_finite(self) -> bool:
        """Whether no value was NaN or infinite: if one was, `low` and `high` say so."""
        return bool(np.isfinite([self.low, self.high]).all())

    @property
    def is_one_sided(self) -> bool:
        """Whether all values have one sign, or are 0."""
        return self.low >= 0.0 or self.high <= 0.0

    @property
    def centres(self) -> np.ndarray:
        """The real value in the middle of each bin."""
        bound = 2.0**self.exponent
        return (np.arange(self.BINS) + 0.5) * (2 * bound / self.BINS) - bound

    def best_of(
        self, ranges: Sequence[tuple[float, float]], *, bits: int, symmetric: bool
    ) -> tuple[float, float]:
        """The first range of the least `sum counts * (x - Q(x))^2`, Q the tensor's grid over it."""
        used = self.counts > 0
        x, weights = self.centres[used], self.counts[used]
        # What a grid is over: it holds 0 and is not empty, of zeros alone either.
        low, high = np.transpose(ranges)
        low, high = np.minimum(low, 0.0), np.maximum(high, activations.NARROWEST)
        if self.power_of_two:
            step = 2.0 ** (np.ceil(np.log2(np.maximum(-low, high))) - (bits - 1))
            low, high = -(2.0 ** (bits - 1)) * step, (2.0 ** (bits - 1) - 1.0) * step
        elif symmetric:
            low, high = activations.symmetric(np.maximum(-low, high), bits)
        # A grid for each range: on one at a time, a network takes seconds.
        grids = Grid.from_range(low, high, bits=bits, axis=0)
        every = np.broadcast_to(x, (len(ranges), x.size))
        errors = np.sum(weights * (every - grids.dequantize(grids.quantize(every))) ** 2, axis=1)
        return ranges[int(np.argmin(errors))]


def _without_infinite(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Values, 0 for those that are infinite or NaN, and the largest magnitude."""
    x = tf.where(tf.math.is_finite(x), x, 0.0)
    return x, tf.reduce_max(tf.abs(x))


@keras.saving.register_keras_serializable("kerasq")
class Percentile(Histogram):
    """Range that leaves out the outermost `100 - percent` % of the values on either side.

    `[F^-1(1 - p), F^-1(p)]`, `p = percent / 100`, F the share of values up to x, to the width of a
    bin of the histogram (McKinstry et al. 2018, arXiv 1809.04191; Wu et al. 2020, 2004.09602).

    Args:
        percent: above 50, at most 100.

    Raises:
        ValueError: for a percentile out of bounds.
    """

    def __init__(self, percent: float = 99.999) -> None:
        super().__init__()
        check_number("percent", percent)
        if not 50.0 < percent <= 100.0:
            raise ValueError(
                f"`percent` must be above 50 and at most 100. Received: percent={percent}."
            )
        self.percent = percent

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The two percentiles, whatever the grid."""
        del bits, symmetric
        if not self.is_finite:
            return self.low, self.high
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = 1 - self.percent / 100
        low = self.centres[np.searchsorted(share, tail, side="right")]
        high = self.centres[np.searchsorted(share, 1 - tail)]
        # The centre of a bin may lie beyond the values in it, also of the only one that there is.
        low, high = np.clip([low, high], self.low, self.high)
        return float(low), float(high)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"percent": self.percent}


@keras.saving.register_keras_serializable("kerasq")
class MeanSquaredError(Histogram):
    """Range whose grid has the least mean squared error on the histogram.

    `argmin over k of sum counts * (x - Q(x))^2`, Q the grid over `[k min x, k max x]` that the
    tensor would get, x the centres of the bins (Nagel et al. 2021, arXiv 2106.08295, section 3.1).

    Args:
        steps: how many k are tried, evenly from 1 down to 0.2; at least 1.

    Raises:
        ValueError: for less than one step.
    """

    def __init__(self, steps: int = 80) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1. Received: steps={steps}.")
        self.steps = steps

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The range of the least error on a grid of this kind."""
        if not self.is_finite:
            return self.low, self.high
        low, high = min(self.low, 0.0), max(self.high, activations.NARROWEST)
        shrunk = [(low * k, high * k) for k in np.linspace(1.0, 0.2, self.steps)]
        # Of equal errors the widest range, which comes first: new values may lie beyond these.
        return self.best_of(shrunk, bits=bits, symmetric=symmetric)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"steps": self.steps}
