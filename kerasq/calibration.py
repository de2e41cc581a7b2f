"""Calibration: the first ranges of activations, from data, by an observer."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.grid import Grid
from kerasq.quantizers.activations import MOVING_RATE
from kerasq.support.data import batch_spec, batches, sample_count
from kerasq.support.progress import track
from kerasq.wrappers import QuantizeWrapper, ranged, require_quantized

BATCH_SIZE = 32


class MinMax:
    """Least and greatest value seen (Krishnamoorthi 2018, section 3.1)."""

    def __init__(self, bits: int = 8) -> None:
        self.bits = bits
        self.low, self.high = np.inf, -np.inf

    @staticmethod
    def statistics(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What `update` needs of a batch; runs inside the traced model."""
        return tf.reduce_min(x), tf.reduce_max(x)

    def update(self, low: np.ndarray, high: np.ndarray) -> None:
        """Takes one batch's statistics."""
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def range(self) -> tuple[float, float]:
        """The range to use."""
        return self.low, self.high


class MovingAverage(MinMax):
    """Mean of the batches' least and greatest values, exponential after 100 batches.

    Jacob et al. 2018, section 3.1: outliers of single batches count for little.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__(bits)
        self.low = self.high = 0.0
        self.count = 0

    def update(self, low: np.ndarray, high: np.ndarray) -> None:
        """Takes one batch's statistics."""
        self.count += 1
        rate = max(1 / self.count, MOVING_RATE)
        self.low += rate * (float(low) - self.low)
        self.high += rate * (float(high) - self.high)


class _Histogram(MinMax):
    """Histogram whose width grows by powers of two, so that bins of all batches line up."""

    BINS = 4096

    def __init__(self, bits: int = 8) -> None:
        super().__init__(bits)
        self.exponent = -1000
        self.counts = np.zeros(self.BINS, np.int64)

    @classmethod
    def statistics(cls, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Ends, counts, and the exponent e of the histogram's width: [-2^e, 2^e]."""
        largest = tf.maximum(tf.reduce_max(tf.abs(x)), 1e-12)
        exponent = tf.math.ceil(tf.math.log(largest) / tf.math.log(2.0))
        bound = 2.0**exponent
        counts = tf.histogram_fixed_width(x, [-bound, bound], cls.BINS, dtype=tf.int64)
        return tf.reduce_min(x), tf.reduce_max(x), counts, exponent

    def update(self, low: Any, high: Any, counts: Any = None, exponent: Any = None) -> None:
        """Takes one batch's statistics."""
        super().update(low, high)
        exponent = int(exponent)
        widest = max(self.exponent, exponent)
        self.counts = self._widen(self.counts, widest - self.exponent) + self._widen(
            counts, widest - exponent
        )
        self.exponent = widest

    def _widen(self, counts: np.ndarray, doublings: int) -> np.ndarray:
        """The same counts in bins twice as wide, `doublings` times."""
        for _ in range(min(doublings, 13)):
            merged = counts.reshape(-1, 2).sum(1)
            counts = np.zeros_like(counts)
            counts[self.BINS // 4 : 3 * self.BINS // 4] = merged
        return counts

    @property
    def centres(self) -> np.ndarray:
        """The real value in the middle of each bin."""
        bound = 2.0**self.exponent
        return (np.arange(self.BINS) + 0.5) * (2 * bound / self.BINS) - bound


class Percentile(_Histogram):
    """Range that leaves out the outermost 0.001 % of the values on either side."""

    PERCENT = 99.999

    def range(self) -> tuple[float, float]:
        """The range to use."""
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = 1 - self.PERCENT / 100
        low = self.centres[np.searchsorted(share, tail, side="right")]
        high = self.centres[np.searchsorted(share, 1 - tail)]
        return float(max(low, self.low)), float(min(high, self.high))


class MeanSquaredError(_Histogram):
    """Range whose grid has the least mean squared error on the histogram.

    argmin over shrunken ranges of `sum counts * (x - Q(x))^2` (Nagel et al. 2021, section 3.1).
    """

    STEPS = 80

    def range(self) -> tuple[float, float]:
        """The range to use."""
        used = self.counts > 0
        x, weights = self.centres[used], self.counts[used]
        low, high = min(self.low, 0.0), max(self.high, 1e-6)
        shrunk = [(low * k, high * k) for k in np.linspace(1.0, 0.2, self.STEPS)]

        def error(ends: tuple[float, float]) -> float:
            grid = Grid.from_range(*ends, bits=self.bits)
            return float(np.sum(weights * (x - grid.dequantize(grid.quantize(x))) ** 2))

        return min(shrunk, key=error)


OBSERVERS: dict[str, type[MinMax]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
}


def calibrate(
    model: keras.Model,
    data: Any,
    method: str | None = None,
    steps: int | None = None,
) -> None:
    """Sets the ranges of all activations from data that runs through the float layers.

    Args:
        model: what `quantize_model` returned. Its ranges change, nothing else.
        data: an array of samples, or an iterable of batches `x` or `(x, y)`.
        method: the observer: "minmax", "moving_average", "percentile" (99.999 %) or "mse". None is
            "mse" for ranges of less than 8 bits, where outliers would take most of the few codes,
            and "moving_average" for others.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.

    Raises:
        ValueError: for an unknown method, a model without ranges, or data that is empty, of the
            wrong shape, NaN or infinite.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu")])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, np.array([[-1.0, 2.0], [0.5, 0.0]]), method="minmax")
        >>> q.predict(np.array([[-1.0, 3.0]]), verbose=0)
        array([[0., 2.]], dtype=float32)
    """
    calibrate_at(None, model, data, method, steps)


def calibrate_at(
    bits: int | None, model: keras.Model, data: Any, method: str | None, steps: int | None = None
) -> None:
    """`calibrate`, to the best ranges at a width; None is that of each range itself."""
    if method is not None and method not in OBSERVERS:
        raise ValueError(f"`method` must be one of {list(OBSERVERS)}. Received: method={method!r}.")
    require_quantized(model)
    quantizers = ranged(model)
    observers = {
        name: _observer(method, bits or quantizer.bits) for name, quantizer in quantizers.items()
    }

    @tf.function(input_signature=[batch_spec(model.input)], autograph=False)
    def observe(x: Any) -> dict[str, tuple[tf.Tensor, ...]]:
        statistics = {}

        def run(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
            layer = node.layer
            if not isinstance(layer, QuantizeWrapper):
                return graph.infer(layer, *args, **kwargs)
            y = layer.run_float(*args)
            if layer.name in quantizers:
                y = quantizers[layer.name].clamp(y)
                statistics[layer.name] = observers[layer.name].statistics(y)
            return y

        graph.run(model, x, run)
        return statistics

    samples = sample_count(model, data)
    total = steps if samples is None else len(range(0, samples, BATCH_SIZE)[:steps])
    for x in track(batches(model, data, BATCH_SIZE, steps), total, "batch"):
        for name, statistics in observe(x).items():
            observers[name].update(*(s.numpy() for s in statistics))
    for name, observer in observers.items():
        quantizers[name].assign_range(*observer.range())


def _observer(method: str | None, bits: int) -> MinMax:
    """A new observer; see `calibrate` for None."""
    return OBSERVERS[method or ("mse" if bits < 8 else "moving_average")](bits)
