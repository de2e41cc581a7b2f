"""Keras metrics of what a .tflite model predicts."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np


def evaluate(
    predict: Callable[[Any], Any],
    outputs: list[str],
    *,
    data: Any,
    metrics: list | dict[str, list],
) -> dict[str, float]:
    """The result of each metric, by name; `TFLiteModel.evaluate` says more.

    Args:
        predict: from inputs to an array, or to arrays by name where there are several outputs.
        outputs: the names of the outputs.
        data: `(x, y)` arrays, or an iterable of such batches.
        metrics: metrics, or lists of them by output where there are several.

    Raises:
        ValueError: where there is no data, or `metrics` does not fit the outputs.
    """
    several = len(outputs) > 1
    by_output = _by_output(metrics, outputs)
    results: dict[str, keras.Metric] = {}
    for x, y, *_ in _batches(data):
        predicted = predict(x) if several else {outputs[0]: predict(x)}
        truth = _truth(y, outputs)
        for output, wanted in by_output.items():
            prefix = f"{output}_" if several else ""
            _update(results, prefix, wanted, np.asarray(truth[output]), predicted[output])
    # A generator that is used up already would otherwise look like a result.
    if not results:
        raise ValueError("`data` must hold at least one batch. Received: none.")
    return {name: float(metric.result()) for name, metric in results.items()}


def _by_output(metrics: Any, outputs: list[str]) -> dict[str, list]:
    """The metrics of each output that has any."""
    if len(outputs) == 1 and isinstance(metrics, (list, tuple)):
        return {outputs[0]: list(metrics)}
    if not isinstance(metrics, dict) or len(outputs) == 1 or {*metrics} - {*outputs}:
        raise ValueError(
            "`metrics` must be a list, or a dict by output where the model has several. "
            f"Received: metrics={metrics!r} for outputs {outputs}."
        )
    # One metric may stand without a list, as in Keras's `compile`.
    return {k: [*v] if isinstance(v, (list, tuple)) else [v] for k, v in metrics.items()}


def _batches(data: Any) -> Any:
    """Batches `(x, y)`; arrays are one of them."""
    # A tuple of tuples is a sequence of batches, not one.
    is_arrays = isinstance(data, tuple) and not isinstance(data[0], tuple)
    if not is_arrays and not isinstance(data, Iterable):
        raise ValueError(
            "`data` must be arrays `(x, y)`, or an iterable of such batches. "
            f"Received: {data!r:.80}."
        )
    return [data] if is_arrays else data


def _truth(y: Any, outputs: list[str]) -> dict[str, Any]:
    """What each output should have been."""
    if len(outputs) == 1:
        return {outputs[0]: y}
    return y if isinstance(y, dict) else dict(zip(outputs, y, strict=True))


def _update(results: dict, prefix: str, metrics: Any, y: np.ndarray, predicted: np.ndarray) -> None:
    """Adds a batch to each metric; the first batch makes those that were given by name."""
    if not y.ndim or len(y) != len(predicted):
        raise ValueError(
            "`data` must hold as many labels as samples. "
            f"Received: {len(predicted)} samples, labels of shape {y.shape}."
        )
    for metric in metrics:
        name = prefix + (metric if isinstance(metric, str) else metric.name)
        if name not in results:
            results[name] = keras_metric(metric, y, predicted)
        results[name].update_state(y, predicted)


def keras_metric(metric: Any, y: np.ndarray, predicted: np.ndarray) -> keras.Metric:
    """The metric object; "accuracy" is resolved by shapes, as `compile` does."""
    if metric not in ("accuracy", "acc"):
        return _found(metric)
    if not np.issubdtype(predicted.dtype, np.floating):  # Labels, which an ARG_MAX gave.
        return keras.metrics.Accuracy()
    # Keras's own "accuracy" compares values, such as probabilities with labels.
    if predicted.shape[-1] == 1:
        return keras.metrics.BinaryAccuracy()
    if y.shape == predicted.shape:
        return keras.metrics.CategoricalAccuracy()
    return keras.metrics.SparseCategoricalAccuracy()


def _found(metric: Any) -> keras.Metric:
    """A metric of Keras.

    Raises:
        ValueError: for what is none.
    """
    try:
        return keras.metrics.get(metric)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "A metric must be one of Keras's, or its name, such as 'accuracy'. "
            f"Received: {metric!r:.80}."
        ) from error
