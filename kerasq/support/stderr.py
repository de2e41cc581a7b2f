"""What C++ writes to standard error, held back."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

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

    Where an error ends the block, the lines that were held are written before it.
    """
    lines: list[str] = []
    with os.fdopen(os.dup(2), "w", buffering=1, errors="replace") as own:
        try:
            with held() as lines, contextlib.redirect_stderr(own):
                yield
        except Exception:
            print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
            raise


@contextlib.contextmanager
def _redirected(lines: list[str]) -> Iterator[None]:
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().splitlines()
