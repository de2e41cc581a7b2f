"""`Bench`: a network, data and a metric, on which any choice of schemes is measured."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.analysis.network import Network
from kerasq.calibration import calibrate as calibration
from kerasq.calibration.observers import Observer
from kerasq.graph import is_lower_better
from kerasq.litert.evaluation import keras_metric
from kerasq.scheme import resolve
from kerasq.support.data import batches, labelled_batches

SQNR = "sqnr"


def metric_name(metric: Any) -> str:
    """What a metric is called."""
    if isinstance(metric, str):
        return metric
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", "metric"))


def _check_metric(metric: Any) -> None:
    """Raises a ValueError for an unknown metric, or one that falls as the model gets better."""
    is_function = callable(metric) and not isinstance(metric, (keras.Metric, type))
    if is_function or (isinstance(metric, str) and metric in (SQNR, "accuracy", "acc")):
        return
    try:
        found = keras.metrics.get(metric) if metric is not None else None
    except ValueError:
        found = None
    if found is None:
        raise ValueError(
            f"`metric` must be {SQNR!r}, a Keras metric or its name, or a function of labels and "
            f"outputs. Received: metric={metric!r}."
        )
    if is_lower_better(found):
        raise ValueError(
            f"`metric` must grow as the model gets better. Received: metric={metric!r}, which "
            "falls. Give a function that returns its negative."
        )


class Bench:
    """A model, data and a metric: measures any choice of schemes.

    Attributes:
        network: the model.
        candidates: names of the schemes.
        schemes: the schemes.
        metric: name of the metric.
        reference: the metric of the float model.
        samples: how many samples there are.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        candidates: Sequence[str],
        metric: Any,
        overrides: dict | None,
        steps: int | None,
        method: str | dict[str, Any] | Observer | None,
    ) -> None:
        self.candidates = (candidates,) if isinstance(candidates, str) else tuple(candidates)
        self.schemes = [resolve(name) for name in self.candidates]
        if not self.candidates or len({*self.candidates}) < len(self.candidates):
            raise ValueError(
                f"`candidates` must be different schemes. Received: candidates={candidates}."
            )
        if any(scheme.weight_bits == 1 for scheme in self.schemes):
            raise ValueError(
                "`candidates` must have weights of 2 bits or more, which are uniform. "
                f"Received: candidates={candidates}."
            )
        self.network = Network(model, self.schemes, overrides)
        self._metric = metric
        self.metric = metric_name(metric)
        _check_metric(metric)
        if self.metric == SQNR:
            self._samples = list(batches(self.network.model, data, calibration.BATCH_SIZE, steps))
            self._labels: list = []
        else:
            pairs = labelled_batches(self.network.model, data, calibration.BATCH_SIZE, steps)
            columns = [list(column) for column in zip(*pairs, strict=True)] or [[], []]
            self._samples, self._labels = columns
        self.samples = sum(len(keras.tree.flatten(x)[0]) for x in self._samples)
        self.network.calibrate(self._samples, method)
        self._float = self._outputs(np.full(len(self.network.layers), len(self.schemes)))
        self.reference = np.inf if self.metric == SQNR else self._labelled(self._float)

    def _outputs(self, choice: np.ndarray) -> list[list[np.ndarray]]:
        index = tf.constant(choice, tf.int32)
        return [[y.numpy() for y in self.network.run(x, index)] for x in self._samples]

    def run(self, choice: np.ndarray) -> tuple[float, float]:
        """The metric with these schemes, and the noise over the signal of the outputs.

        Args:
            choice: for each layer of the network the index of its scheme; float is the last one.
        """
        outputs = self._outputs(choice)
        signal = noise = 0.0
        for batch, run in zip(self._float, outputs, strict=True):
            for y, z in zip(batch, run, strict=True):
                y = y.astype(np.float64)
                signal += float(np.square(y).sum())
                noise += float(np.square(y - z).sum())
        noise /= max(signal, np.finfo(np.float64).tiny)
        if self.metric == SQNR:
            return float(-10 * np.log10(noise)) if noise > 0 else np.inf, noise
        return self._labelled(outputs), noise

    def _labelled(self, outputs: list[list[np.ndarray]]) -> float:
        predictions: list[Any] = [run[0] if len(run) == 1 else run for run in outputs]
        pairs = list(zip(self._labels, predictions, strict=True))
        if callable(self._metric) and not isinstance(self._metric, (keras.Metric, type)):
            return float(np.mean([np.mean(self._metric(y, z)) for y, z in pairs]))
        metric = keras_metric(self._metric, *pairs[0])
        metric.reset_state()
        for y, z in pairs:
            metric.update_state(y, z)
        return float(metric.result())
