"""A progress bar for what takes more than a few seconds."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import keras

T = TypeVar("T")
# Shorter runs print nothing.
QUIET_SECONDS = 2.0


def track(items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    """Yields `items`; once that has taken a while, shows how far it is.

    Args:
        items: what to go through.
        total: how many there are, or None where that is not known.
        unit: what one of them is called, such as "batch".
    """
    started, bar = time.monotonic(), None
    for count, item in enumerate(items, start=1):
        yield item
        if bar is None and time.monotonic() - started > QUIET_SECONDS:
            bar = keras.utils.Progbar(total, unit_name=unit)
        if bar is not None:
            bar.update(count)
    if bar is not None and total is None:
        print()
