"""Histograms that grow batch by batch: of real values in equal bins, and of integer codes."""

from typing import Any

import numpy as np

from kerasq.grid import Grid

BINS = 96
# Of so many values of a layer all are counted in a batch, of more every second sample, or fewer.
MOST = 2**17


def some(x: np.ndarray) -> np.ndarray:
    """Samples of a batch at equal distances, with at most `MOST` values, or one sample."""
    count = max(1, MOST // max(1, x[:1].size))
    return x[:: -(-len(x) // count)]


class ValueCounts:
    """A histogram of real values, in `BINS` equal bins; values beyond the ends are in the end bins.

    Args:
        low: the lower end of the first bin.
        high: the upper end of the last bin.
    """

    def __init__(self, low: float, high: float) -> None:
        # Of a tensor that is always 0, any bins will do.
        self.low, self.high = low, high if high > low else low + 1.0
        self.counts = np.zeros(BINS, np.int64)

    @classmethod
    def around(cls, x: np.ndarray, grid: Grid | None) -> "ValueCounts":
        """Empty bins for values such as `x`, and all of a grid of one scale."""
        ends = [float(x.min(initial=0.0)), float(x.max(initial=0.0))]
        if grid is not None:
            ends += [float(np.min(grid.low)), float(np.max(grid.high))]
        return cls(min(ends), max(ends))

    def add(self, x: np.ndarray) -> None:
        """Counts values."""
        # In float64, as float32 puts some values that are next to an edge on its other side.
        places = (x.ravel().astype(np.float64) - self.low) * (BINS / (self.high - self.low))
        # Clipped first: what is far beyond the ends has no place among int32.
        places = np.clip(places, 0, BINS - 1).astype(np.int32)
        self.counts += np.bincount(places, minlength=BINS)

    def figures(self) -> dict[str, Any]:
        """The ends and the counts, for JSON."""
        return {"low": self.low, "high": self.high, "counts": self.counts.tolist()}


class CodeCounts:
    """How often each code of a grid occurs; of more than 256 codes, neighbours are one bin.

    Args:
        grid: the grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._lowest = -(2 ** (grid.bits - 1))
        self._shift = max(0, grid.bits - 8)
        self._legal = grid.qmax - grid.qmin + 1
        self._is_used = np.zeros(2**grid.bits, bool)
        self.counts = np.zeros(2 ** (grid.bits - self._shift), np.int64)

    def add(self, codes: np.ndarray) -> None:
        """Counts signed codes."""
        places = codes.ravel().astype(np.int32) - self._lowest
        self.counts += np.bincount(places >> self._shift, minlength=self.counts.size)
        if self._shift:
            self._is_used[places] = True
        else:
            self._is_used = self.counts > 0

    @property
    def used(self) -> int:
        """How many codes occur."""
        return int(self._is_used.sum())

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest code that occur; both the same where none does."""
        places = np.flatnonzero(self._is_used)
        if not places.size:
            return self._lowest, self._lowest
        return int(places[0]) + self._lowest, int(places[-1]) + self._lowest

    def figures(self) -> dict[str, Any]:
        """The counts without empty ends, and what code the first of them is, for JSON."""
        found = np.flatnonzero(self.counts)
        first, last = (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)
        return {
            "first": (first << self._shift) + self._lowest,
            "step": 1 << self._shift,
            "counts": self.counts[first:last].tolist(),
            "used": self.used,
            "legal": self._legal,
        }
