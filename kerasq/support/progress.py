"""Progress of what takes more than a few seconds: a bar, or lines where nobody watches."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import keras

T = TypeVar("T")
# Shorter runs print nothing.
QUIET_SECONDS = 2.0
# How many lines there are of a run whose length is known.
_LINES = 10


def is_interactive() -> bool:
    """Whether what is printed can be overwritten: in a terminal or notebook, not in a file or pipe.

    Keras's own bar takes every Linux for a terminal.
    """
    is_terminal = getattr(sys.stdout, "isatty", bool)()
    return is_terminal or "ipykernel" in sys.modules or "PYCHARM_HOSTED" in os.environ


def track(items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    """Yields `items`; once that has taken a while, shows how far it is.

    In a terminal or notebook that is a bar, which is drawn anew; elsewhere a line for each tenth,
    or one at the end where `total` is not known.

    Args:
        items: what to go through.
        total: how many there are, or None where that is not known.
        unit: what one of them is called, such as "batch".
    """
    started, shown = time.monotonic(), None
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        if shown is None and time.monotonic() - started > QUIET_SECONDS:
            shown = _shown(total, unit, started)
        if shown is not None:
            shown.update(count)
    if shown is not None and total is None:
        _end(shown, count)


def _shown(total: int | None, unit: str, started: float) -> Any:
    if is_interactive():
        return keras.utils.Progbar(total, unit_name=unit)
    return _Lines(total, unit, started)


def _end(shown: Any, count: int) -> None:
    """Ends a bar, or writes the only line, of a run whose length was not known."""
    if isinstance(shown, _Lines):
        shown.write(f"{count}")
    else:
        print()


class _Lines:
    """A line for each tenth of a run, as logs want it.

    Args:
        total: how many items there are; None where that is not known.
        unit: what one of them is called.
        started: when the run began.
    """

    def __init__(self, total: int | None, unit: str, started: float) -> None:
        self._total, self._unit, self._started = total, unit, started
        self._written: int | None = None

    def update(self, count: int) -> None:
        """Writes a line where another tenth is done."""
        if self._total is None:
            return
        tenth = _LINES * count // self._total
        # The first call only says where the run is when it is told of.
        if tenth != self._written and (self._written is not None or count == self._total):
            self.write(f"{count}/{self._total}")
        self._written = tenth

    def write(self, count: str) -> None:
        """Writes a line."""
        seconds = time.monotonic() - self._started
        print(f"{self._unit} {count}, {seconds:.0f} s", flush=True)
