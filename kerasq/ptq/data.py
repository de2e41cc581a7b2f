"""`Data`: samples that can be read again and again."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.support.data import batches, sample_count


class Data:
    """Batches that can be read again and again.

    Args:
        model: the model that they are for.
        data: as for `kerasq.calibrate`. What can only be read once is kept in memory.
        steps: the most batches, or None for all.
    """

    def __init__(self, model: keras.Model, data: Any, steps: int | None) -> None:
        self._read: Callable[[], Iterable[Any]]
        if isinstance(data, Iterator) or not _is_repeatable(model, data):
            kept = list(batches(model, data, BATCH_SIZE, steps))
            self._read = lambda: kept
        else:
            self._read = functools.partial(batches, model, data, BATCH_SIZE, steps)
        # All are checked now, not when a layer is half done.
        self.first = next(iter(self._read()))
        self.count = sum(len(keras.tree.flatten(x)[0]) for x in self._read())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._read())


def _is_repeatable(model: keras.Model, data: Any) -> bool:
    """Whether data that was read once has the same samples again, in their order."""
    # A dataset may be shuffled anew each time, and the two networks must read the same.
    return isinstance(data, (list, tuple)) or sample_count(model, data) is not None
