"""`Bench`: a network, data and a metric, on which any choice of schemes is measured."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import targets
from kerasq.analysis.network import Network
from kerasq.analysis.trace import traced
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.calibration.observer import Observer
from kerasq.graph import is_lower_better
from kerasq.litert.evaluation import keras_metric
from kerasq.scales import FREE
from kerasq.scheme import Scheme, resolve
from kerasq.support.data import batches, labelled_batches
from kerasq.support.sqnr import sqnr
from kerasq.targets import Target

SQNR = "sqnr"


def metric_name(metric: Any) -> str:
    """What a metric is called."""
    if isinstance(metric, str):
        return metric
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", "metric"))


def metric_label(name: str) -> str:
    """The name of a metric with its unit, for tables and plots."""
    return f"{name} (dB)" if name == SQNR else name


def _is_function(metric: Any) -> bool:
    """Whether a metric is a function of labels and outputs; Keras's metrics can be called, too."""
    return callable(metric) and not isinstance(metric, (keras.Metric, type))


def _check_metric(metric: Any) -> None:
    """Raises a ValueError for an unknown metric, or one that falls as the model gets better."""
    # "accuracy" is no metric yet: which one it is, the shapes of labels and outputs say.
    if _is_function(metric) or (isinstance(metric, str) and metric in (SQNR, "accuracy", "acc")):
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
    # Where Keras says nothing of a metric's direction, it is the user's word that it grows.
    if is_lower_better(found):
        raise ValueError(
            f"`metric` must grow as the model gets better. Received: metric={metric!r}, which "
            "falls. Give a function that returns its negative."
        )


class Bench:
    """A model, data and a metric: measures any choice of schemes.

    Args:
        model: the float model.
        data: as for `kerasq.sensitivity`, as is all that follows.
        candidates: names of the schemes that a layer may have.
        metric: what is measured.
        overrides: layers that stay float.
        steps: the most batches.
        method: the observer.
        target: what the model is to run on.
        granularity: what of a kernel shares a scale.
        scales: which scales are powers of two.

    Attributes:
        network: the model at any schemes.
        candidates: names of the schemes.
        schemes: the schemes.
        target: what the model is to run on.
        granularity: what of a kernel shares a scale.
        scales: which scales are powers of two.
        metric: name of the metric.
        reference: the metric of the float model.
        samples: how many samples there are.

    Raises:
        ValueError: for schemes, a metric or data that cannot be measured, or a model that cannot be
            quantized.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        *,
        candidates: Sequence[str],
        metric: Any,
        overrides: dict | None,
        steps: int | None,
        method: str | dict[str, Any] | Observer | None,
        target: str | Target,
        granularity: str,
        scales: str = FREE,
    ) -> None:
        self.candidates = _names(candidates)
        self.schemes = _schemes(self.candidates)
        self.target = targets.find(target)
        self.granularity, self.scales = granularity, scales
        self.network = Network(model, self.schemes, overrides, self.target, granularity, scales)
        _check_metric(metric)
        self._metric, self.metric = metric, metric_name(metric)
        self._samples, self._labels = self._load(data, steps)
        self.samples = sum(len(keras.tree.flatten(x)[0]) for x in self._samples)
        self.network.calibrate(self._samples, method)
        # Made of the grids, so it is traced behind the calibration.
        self._run = traced(self.network)
        self._float = self._outputs(np.full(len(self.network.layers), len(self.schemes)))
        self.reference = np.inf if self.metric == SQNR else self._labelled(self._float)

    def _load(self, data: Any, steps: int | None) -> tuple[list, list]:
        """All samples and labels, in batches; of the SQNR no labels."""
        model = self.network.model
        if self.metric == SQNR:
            return list(batches(model, data, BATCH_SIZE, steps)), []
        pairs = list(labelled_batches(model, data, BATCH_SIZE, steps))
        return [x for x, _ in pairs], [y for _, y in pairs]

    def _outputs(self, choice: np.ndarray) -> list[list[np.ndarray]]:
        """The network's outputs, batch by batch."""
        index = tf.constant(choice, tf.int32)
        return [[y.numpy() for y in self._run(x, index)] for x in self._samples]

    def run(self, choice: np.ndarray) -> tuple[float, float]:
        """The metric with these schemes, and the noise over the signal of the outputs.

        Noise is `sum (y - z)^2 / sum y^2` over all outputs of all samples, y of the float model, z
        of this choice; the SQNR is `-10 log10` of it, in dB.

        Args:
            choice: for each layer of the network the index of its scheme; float is the last one.
        """
        outputs = self._outputs(choice)
        signal = noise = 0.0
        for batch, run in zip(self._float, outputs, strict=True):
            for y, z in zip(batch, run, strict=True):
                # The noise of 16 bits is below what sums of squares in float32 tell apart.
                y = y.astype(np.float64)
                signal += float(np.square(y).sum())
                noise += float(np.square(y - z).sum())
        noise /= max(signal, np.finfo(np.float64).tiny)
        if self.metric == SQNR:
            return sqnr(noise), noise
        return self._labelled(outputs), noise

    def _labelled(self, outputs: list[list[np.ndarray]]) -> float:
        """The metric of outputs against the labels."""
        # A metric gets the array of the one output, not a list of it.
        predictions: list[Any] = [run[0] if len(run) == 1 else run for run in outputs]
        pairs = list(zip(self._labels, predictions, strict=True))
        if _is_function(self._metric):
            # The last batch may have fewer samples than the others.
            means = [np.mean(self._metric(y, z)) for y, z in pairs]
            return float(np.average(means, weights=[*map(len, self._labels)]))
        # A user's own object has the state of the last choice, and of what the user did with it.
        metric = keras_metric(self._metric, *pairs[0])
        metric.reset_state()
        for y, z in pairs:
            metric.update_state(y, z)
        return float(metric.result())


def _names(candidates: Any) -> tuple[str, ...]:
    """The names of schemes: of one, or of several."""
    if isinstance(candidates, Iterable) and not isinstance(candidates, str):
        return tuple(candidates)
    if isinstance(candidates, str):
        return (candidates,)
    raise ValueError(
        "`candidates` must be names of schemes, such as ('w8a8', 'w4a8'). "
        f"Received: candidates={candidates!r:.80}."
    )


def _schemes(candidates: tuple[str, ...]) -> list[Scheme]:
    """The schemes of these names.

    Raises:
        ValueError: where they are none, twice the same, or of binary weights.
    """
    schemes = [resolve(name) for name in candidates]
    if not candidates or len({*candidates}) < len(candidates):
        raise ValueError(
            f"`candidates` must be different schemes. Received: candidates={candidates}."
        )
    # Binary weights have another scale, the mean magnitude, than the grids that are tried here.
    if any(scheme.weight_bits == 1 for scheme in schemes):
        raise ValueError(
            "`candidates` must have weights of 2 bits or more, which are uniform. "
            f"Received: candidates={candidates}."
        )
    return schemes
