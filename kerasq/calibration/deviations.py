"""Ranges of so many standard deviations around the mean."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.calibration.extremes import MinMax
from kerasq.support.numbers import check_number


@keras.saving.register_keras_serializable("kerasq")
class StandardDeviations(MinMax):
    """`[mean - count * std, mean + count * std]`, within the least and greatest value.

    Mean and standard deviation (over n) are those of all values seen, put together from those of
    batches (Chan et al. 1979): whatever their order. Distiller's "n_std" clips so.

    Args:
        count: how many standard deviations, above 0. The least error of normal values needs 3.9 at
            8 bits and 2.6 at 4, that of Laplace's 7.0 and 3.6 (Banner et al. 2019).

    Raises:
        ValueError: for a count that is not above 0.
    """

    def __init__(self, count: float = 5.0) -> None:
        super().__init__()
        check_number("count", count)
        if not 0.0 < count < np.inf:
            raise ValueError(f"`count` must be above 0 and finite. Received: count={count}.")
        self.count = count
        self.values, self.mean, self.squares = 0, 0.0, 0.0

    def statistics(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Ends, number of values, their mean, and their variance."""
        mean = tf.reduce_mean(x)
        variance = tf.reduce_mean(tf.square(x - mean))
        return *super().statistics(x), tf.size(x, tf.int64), mean, variance

    def update(self, statistics: Sequence[np.ndarray]) -> None:
        """Puts mean and sum of squared deviations together with the batch's."""
        *ends, count, mean, variance = statistics
        super().update(ends)
        values, apart = int(count), float(mean) - self.mean
        total = self.values + values
        self.squares += float(variance) * values + apart**2 * self.values * values / total
        self.mean += apart * values / total
        self.values = total

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The ends, whatever the grid."""
        del bits, symmetric
        reach = self.count * float(np.sqrt(self.squares / self.values))
        # Plain maxima would drop NaN, which is refused.
        ends = np.clip([self.mean - reach, self.mean + reach], self.low, self.high)
        return float(ends[0]), float(ends[1])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"count": self.count}
