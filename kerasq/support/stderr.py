"""What C++ writes to standard error, held back."""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import TextIO

# Standard error is the process's: two threads must not exchange it.
_LOCK = threading.RLock()


@contextlib.contextmanager
def held() -> Iterator[list[str]]:
    """Holds back what C++ writes to standard error; yields a list that has its lines afterwards.

    What Python writes meanwhile to `sys.stderr` goes there too, unless it is `aside`.
    """
    lines: list[str] = []
    with _LOCK, _redirected(lines):
        yield lines


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """As `held`, of C++ alone: Python's errors and warnings are written as ever.

    Where an error ends the block, the lines that were held are written before it. Where C++ ends
    the process they are lost, but Python writes where that was.
    """
    lines: list[str] = []
    with os.fdopen(_copy(), "w", buffering=1, errors="replace") as own, _told_of_crashes(own):
        try:
            with held() as lines, contextlib.redirect_stderr(own):
                yield
        except Exception:
            print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
            raise


@contextlib.contextmanager
def _told_of_crashes(file: TextIO) -> Iterator[None]:
    """Where C++ ends the process, Python writes its calls."""
    if faulthandler.is_enabled():  # For another file, which it does not say.
        yield
        return
    faulthandler.enable(file)
    try:
        yield
    finally:
        faulthandler.disable()


def _copy() -> int:
    """A copy of standard error, which leads nowhere where it was closed."""
    try:
        return os.dup(2)
    except OSError:
        # Else the next file that is opened would be it, with all that C++ writes.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        return os.dup(2)


@contextlib.contextmanager
def _redirected(lines: list[str]) -> Iterator[None]:
    kept = _copy()
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().splitlines()
