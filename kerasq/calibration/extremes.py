"""Ranges from the least and the greatest value of each batch."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.calibration.observer import Observer
from kerasq.support.numbers import check_number

# Share of a batch in a moving average (Jacob et al. 2018, section 3.1).
MOVING_RATE = 0.01


@keras.saving.register_keras_serializable("kerasq")
class MinMax(Observer):
    """Least and greatest value seen: `[min x, max x]` (Krishnamoorthi 2018, section 2.5)."""

    def __init__(self) -> None:
        # An empty range, which any value widens.
        self.low, self.high = np.inf, -np.inf

    def statistics(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The batch's least and greatest value."""
        return tf.reduce_min(x), tf.reduce_max(x)

    def update(self, statistics: Sequence[np.ndarray]) -> None:
        """Widens the range to hold the batch's."""
        low, high = map(float, statistics)
        # NumPy's keep NaN, which is refused, where Python's would drop it.
        self.low, self.high = float(np.minimum(self.low, low)), float(np.maximum(self.high, high))

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The ends seen so far, whatever the grid."""
        del bits, symmetric
        return self.low, self.high


@keras.saving.register_keras_serializable("kerasq")
class MovingAverage(MinMax):
    """Mean of the batches' least and greatest values, exponential after `1 / rate` batches.

    `end += max(1 / n, rate) * (end of batch n - end)`: outliers of single batches count for little
    (Jacob et al. 2018, section 3.1; Krishnamoorthi 2018, section 2.5).

    Args:
        rate: share of a batch in the exponential average, above 0 and at most 1.

    Raises:
        ValueError: for a rate out of bounds.
    """

    def __init__(self, rate: float = MOVING_RATE) -> None:
        super().__init__()
        check_number("rate", rate)
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"`rate` must be above 0 and at most 1. Received: rate={rate}.")
        self.rate = rate
        # The first batch counts in full, so these do not.
        self.low = self.high = 0.0
        self.count = 0

    def update(self, statistics: Sequence[np.ndarray]) -> None:
        """Moves the ends towards those of the batch."""
        low, high = map(float, statistics)
        self.count += 1
        # From the start at the full delay, few batches would leave the ends near 0.
        rate = max(1 / self.count, self.rate)
        self.low += rate * (low - self.low)
        self.high += rate * (high - self.high)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"rate": self.rate}


@keras.saving.register_keras_serializable("kerasq")
class Average(MovingAverage):
    """Mean of the batches' least and greatest values, all batches alike (Distiller's "avg").

    `end = 1/n sum of ends of batches`: whatever their order.
    """

    def __init__(self) -> None:
        # Of which `MovingAverage` takes 1 / n, as that is always more.
        super().__init__(rate=np.finfo(np.float64).tiny)

    def get_config(self) -> dict[str, Any]:
        """No arguments."""
        return {}
