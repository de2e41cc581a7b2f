"""The best of the other observers, tensor by tensor."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from kerasq.calibration.aciq import Aciq
from kerasq.calibration.deviations import StandardDeviations
from kerasq.calibration.entropy import Entropy
from kerasq.calibration.extremes import Average, MinMax
from kerasq.calibration.histogram import Histogram, MeanSquaredError, Percentile
from kerasq.calibration.observer import Observer

# Of equal error the first one counts.
CANDIDATES: tuple[type[Observer], ...] = (
    MinMax,
    MeanSquaredError,
    Percentile,
    Average,
    StandardDeviations,
    Entropy,
    Aciq,
)


@keras.saving.register_keras_serializable("kerasq")
class Best(Observer):
    """For each tensor the range, of those that other observers give, of the least squared error.

    `argmin over observers of sum counts * (x - Q(x))^2`, on a histogram of all values, outliers
    included, and on the grid that the tensor gets.
    """

    def __init__(self) -> None:
        # All those on histograms see the same: they share what one has of a batch.
        self._kinds: dict[str, list[Observer]] = {}
        self._histogram = Histogram()
        for observer in (self._histogram, *(make() for make in CANDIDATES)):
            self._kinds.setdefault(type(observer).statistics.__qualname__, []).append(observer)
        # How many statistics each kind has.
        self._counts = [len(kind[0].statistics(tf.zeros([1]))) for kind in self._kinds.values()]

    def statistics(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Those of all observers, one after the other."""
        return tuple(s for kind in self._kinds.values() for s in kind[0].statistics(x))

    def update(self, statistics: Sequence[np.ndarray]) -> None:
        """Gives each observer what is its own."""
        left = [*statistics]
        for kind, count in zip(self._kinds.values(), self._counts, strict=True):
            own, left = left[:count], left[count:]
            for observer in kind:
                observer.update(own)

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The range of the least error on a grid of this kind."""
        histogram = self._histogram
        if not histogram.is_finite:
            return histogram.low, histogram.high
        for observer in (x for kind in self._kinds.values() for x in kind):
            observer.power_of_two = self.power_of_two
        by_type = {type(x): x for kind in self._kinds.values() for x in kind}
        ranges = [by_type[kind].range(bits=bits, symmetric=symmetric) for kind in CANDIDATES]
        # Squares of the largest numbers are infinite.
        ranges = [x for x in ranges if np.isfinite(x).all()]
        return histogram.best_of(ranges, bits=bits, symmetric=symmetric)
