"""The power of noise beside that of the signal, summed up batch by batch."""

import numpy as np

from kerasq.support.sqnr import sqnr


class Noise:
    """The difference between values and what they should be.

    Attributes:
        count: how many values were compared.
    """

    def __init__(self) -> None:
        self.count = 0
        self._signal = self._noise = 0.0

    def add(self, wanted: np.ndarray, found: np.ndarray) -> None:
        """Adds the values of a batch."""
        wanted = np.ravel(wanted).astype(np.float32, copy=False)
        error = np.ravel(found) - wanted
        self.count += wanted.size
        # A batch in float32, which BLAS sums in parts, batches in float64.
        self._signal += float(np.dot(wanted, wanted))
        self._noise += float(np.dot(error, error))

    @property
    def sqnr(self) -> float | None:
        """In dB, infinite without noise; None where there is neither noise nor signal."""
        if not self._signal:
            return None
        return sqnr(self._noise / self._signal)
