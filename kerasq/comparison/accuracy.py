"""The accuracy of each output, by what computed it."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasq.litert.evaluation import keras_metric


class Accuracy:
    """Keras's accuracy of the outputs of several sides, such as simulation and file.

    Args:
        outputs: the names of the outputs, in order.
    """

    def __init__(self, outputs: Sequence[str]) -> None:
        self._outputs = outputs
        self._metrics: dict[tuple[str, str], keras.Metric] = {}

    def add(self, labels: Any, sides: dict[str, list[np.ndarray]]) -> None:
        """Counts a batch: its labels, as `by_output` takes them, and by side all outputs.

        Raises:
            ValueError: for labels of classes that an output does not have.
        """
        truth = by_output(labels, self._outputs)
        for side, outputs in sides.items():
            for name, y, z in zip(self._outputs, truth, outputs, strict=True):
                if y is not None and _are_classes(y, z):
                    _check_classes(name, y, z)
                    self._metric(name, side, y, z).update_state(y, z)

    def _metric(self, name: str, side: str, y: np.ndarray, z: np.ndarray) -> keras.Metric:
        if (name, side) not in self._metrics:
            self._metrics[name, side] = keras_metric("accuracy", y, z)
        return self._metrics[name, side]

    def result(self) -> dict[str, dict[str, float]]:
        """By output that has classes, by side, the share of labels that are right."""
        found: dict[str, dict[str, float]] = {}
        for (name, side), metric in self._metrics.items():
            found.setdefault(name, {})[side] = float(metric.result())
        return found


def by_output(labels: Any, outputs: Sequence[str]) -> list[np.ndarray | None]:
    """The labels of each output; None where there are none.

    Args:
        labels: an array, or of several outputs a dict by their names, or a list in their order;
            None, or labels of another structure, for none.
        outputs: the names of the outputs, in order.
    """
    if isinstance(labels, dict):
        found = [labels.get(name) for name in outputs]
    else:
        found = [*labels] if isinstance(labels, (list, tuple)) else [labels]
    if len(found) != len(outputs):
        return [None for _ in outputs]
    return [None if y is None else np.asarray(y) for y in found]


def _check_classes(output: str, labels: np.ndarray, outputs: np.ndarray) -> None:
    """Raises a ValueError for places of classes that there are none of: none would be right."""
    count = outputs.shape[-1]
    if labels.shape == outputs.shape or count == 1 or not labels.size:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"Labels of output {output!r} must be classes from 0 to {count - 1}. Received: labels "
            f"from {low} to {high}. Number the classes from 0; without labels there is no accuracy."
        )


def _are_classes(labels: np.ndarray, outputs: np.ndarray) -> bool:
    """Whether labels are classes, of which there is an accuracy."""
    if np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool:
        return labels.size == outputs[..., :1].size or labels.shape == outputs.shape
    # One hot.
    return labels.shape == outputs.shape and bool(np.isin(labels, (0.0, 1.0)).all())
