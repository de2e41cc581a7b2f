"""Ranges over training, from what `kerasq.LogRanges` wrote."""

import os
import pathlib
from typing import Any

import tensorflow as tf

_PREFIX = "ranges/"


def ranges_over_training(folder: str | os.PathLike) -> dict[str, dict[str, list[list[float]]]]:
    """By layer and curve ("low", "high", "weights", "clipped") the points `[epoch, value]`.

    Args:
        folder: the `log_dir` of `kerasq.LogRanges`.

    Raises:
        ValueError: where it holds no ranges.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    # A run that went on has a second file; of an epoch that both have, the later one counts.
    for path in sorted(pathlib.Path(folder).glob("*tfevents*"), key=lambda x: x.stat().st_mtime_ns):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                _add(found, event.step, value)
    if not found:
        raise ValueError(
            "`logs` must be the folder that `kerasq.LogRanges` wrote to. "
            f"Received: {os.fspath(folder)!r}, without ranges."
        )
    return {
        layer: {
            curve: [[*point] for point in sorted(points.items())] for curve, points in x.items()
        }
        for layer, x in found.items()
    }


def _add(found: dict[str, dict[str, dict[int, float]]], step: int, value: Any) -> None:
    """Adds a point, where it is of a range."""
    if value.tag.startswith(_PREFIX):
        layer, _, curve = value.tag.removeprefix(_PREFIX).rpartition("/")
        points = found.setdefault(layer, {}).setdefault(curve, {})
        points[int(step)] = float(tf.make_ndarray(value.tensor))
