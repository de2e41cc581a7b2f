"""Calibration: the first ranges of activations, from data, by an observer."""

import copy
from typing import Any

import keras
import tensorflow as tf

from kerasq import graph
from kerasq.calibration import observers
from kerasq.calibration.observers import Observer
from kerasq.support.data import batch_spec, batches, sample_count
from kerasq.support.progress import track
from kerasq.wrappers import QuantizeWrapper, ranged, require_quantized

BATCH_SIZE = 32


def calibrate(
    model: keras.Model,
    data: Any,
    *,
    method: str | dict[str, Any] | Observer | None = None,
    steps: int | None = None,
) -> None:
    """Sets the ranges of all activations from data that runs through the float layers.

    Args:
        model: what `quantize_model` returned. Its ranges change, nothing else.
        data: an array of samples, or an iterable of batches `x` or `(x, y)`.
        method: the observer: "minmax", "moving_average", "percentile" (99.999 %) or "mse"; a
            `kerasq.Observer`, such as `kerasq.Percentile(99.9)`, of which each tensor gets a copy;
            or its configuration. None is "mse" for ranges of less than 8 bits, where outliers
            would take most of the few codes, and "moving_average" for others.
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
    bits: int | None,
    model: keras.Model,
    data: Any,
    method: str | dict[str, Any] | Observer | None,
    steps: int | None = None,
) -> None:
    """`calibrate`, to the best ranges at a width; None is that of each range itself."""
    prototype = None if method is None else observers.find(method)
    require_quantized(model)
    quantizers = ranged(model)
    widths = {name: bits or quantizer.bits for name, quantizer in quantizers.items()}
    seen = {name: _observer(prototype, width) for name, width in widths.items()}

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
                statistics[layer.name] = seen[layer.name].statistics(y)
            return y

        graph.run(model, x, run)
        return statistics

    samples = sample_count(model, data)
    total = steps if samples is None else len(range(0, samples, BATCH_SIZE)[:steps])
    for x in track(batches(model, data, BATCH_SIZE, steps), total, "batch"):
        for name, statistics in observe(x).items():
            seen[name].update([s.numpy() for s in statistics])
    for name, observer in seen.items():
        low, high = observer.range(bits=widths[name], symmetric=widths[name] > 8)
        quantizers[name].assign_range(low, high)


def _observer(prototype: Observer | None, bits: int) -> Observer:
    """A new observer like the prototype; see `calibrate` for None."""
    if prototype is None:
        return observers.find("mse" if bits < 8 else "moving_average")
    return copy.deepcopy(prototype)
