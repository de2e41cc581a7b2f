"""Curves over training, from what `kerasq.LogRanges` wrote."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from kerasq.support.files import path_of

# At most about so many points of a curve are drawn: a screen shows no more, and the page is small.
MOST = 200


def curves_over_training(folder: str | os.PathLike) -> dict[str, dict[str, list[list[float]]]]:
    """By layer and curve the points `[epoch, value]`.

    The curves are "low", "high" and "weights", ends of ranges; "clipped", the share of values
    beyond them; and "sqnr", in dB.

    Args:
        folder: the `log_dir` of `kerasq.LogRanges`.

    Raises:
        ValueError: where it holds no ranges.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    # A run that went on has a second file; of an epoch that both have, the later one counts.
    for path in sorted(
        path_of(folder, "logs").glob("*tfevents*"), key=lambda x: x.stat().st_mtime_ns
    ):
        for event in _events(path):
            for value in event.summary.value:
                _add(found, event.step, value)
    if not found:
        raise ValueError(
            "`logs` must be the folder that `kerasq.LogRanges` wrote to. "
            f"Received: {os.fspath(folder)!r}, without ranges."
        )
    return {
        layer: {curve: _thinned(points) for curve, points in curves.items()}
        for layer, curves in found.items()
    }


def _events(path: pathlib.Path) -> Iterator[Any]:
    """The events of a file, up to where a run was killed while it wrote one."""
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield tf.compat.v1.Event.FromString(record)
    except tf.errors.DataLossError:
        return


def _add(found: dict[str, dict[str, dict[int, float]]], step: int, value: Any) -> None:
    """Adds a point, where it is of a curve."""
    kind, _, layer = value.tag.partition("/")
    curve = kind
    if kind == "ranges":
        layer, _, curve = layer.rpartition("/")
    if kind in ("ranges", "sqnr"):
        point = tf.make_ndarray(value.tensor)
        # Keras's own callback has histograms of a layer that is called so.
        if point.ndim == 0:
            found.setdefault(layer, {}).setdefault(curve, {})[int(step)] = float(point)


def _thinned(points: dict[int, float]) -> list[list[float]]:
    """The points in order, some at equal distances of many; the last one, where it ended, too."""
    order = [[*point] for point in sorted(points.items())]
    some = order[:: -(-len(order) // MOST)]
    return some if some[-1] == order[-1] else [*some, order[-1]]
