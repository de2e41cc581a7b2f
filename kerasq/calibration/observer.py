"""`Observer`: what is kept of the values of a tensor, and the range that follows from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class Observer:
    """Base of all observers: takes the values of one tensor batch by batch and gives a range.

    `kerasq.calibrate(method=...)` takes an instance as a prototype, of which each tensor gets a
    copy. A class of your own implements `statistics`, `update` and `range`; with `get_config` and
    `keras.saving.register_keras_serializable` it can be given as a configuration as well.

    Example:
        >>> class Sigmas(kerasq.Observer):
        ...     "So many root mean squares on either side of 0."
        ...
        ...     def __init__(self, count):
        ...         self.count, self.squares, self.values = count, 0.0, 0
        ...
        ...     def statistics(self, x):
        ...         return keras.ops.sum(x * x), keras.ops.size(x)
        ...
        ...     def update(self, statistics):
        ...         self.squares += float(statistics[0])
        ...         self.values += int(statistics[1])
        ...
        ...     def range(self, *, bits, symmetric):
        ...         high = self.count * (self.squares / self.values) ** 0.5
        ...         return -high, high
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, np.ones((8, 2)), method=Sigmas(3.0))
    """

    # Whether the scale that the tensor gets is the least power of two that holds the range: those
    # that weigh errors of grids weigh these. `kerasq.calibrate` sets it.
    power_of_two = False

    def statistics(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What `update` needs of a batch; may be traced into the model, so it changes nothing."""
        raise NotImplementedError

    def update(self, statistics: Sequence[np.ndarray]) -> None:
        """Takes the statistics of one batch."""
        raise NotImplementedError

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The ends of the range, in real units, after all batches.

        Two finite numbers, the lower one first: anything else `kerasq.calibrate` refuses with a
        ValueError that names the layer. It may be asked for several grids, in any order.

        Args:
            bits: width of the grid that the tensor gets.
            symmetric: whether its zero point is 0 (int16, and scales that are powers of two): the
                grid is then that over the end of the larger magnitude. Others are widened to hold
                0.0.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Observer":
        """The observer that `get_config` describes."""
        return cls(**config)
