"""The signal to quantization noise ratio, in dB: of powers, or of values batch by batch."""

import numpy as np


def sqnr(noise: float) -> float:
    """`-10 log10` of the power of the noise over that of the signal; infinite without noise."""
    return float(-10 * np.log10(noise)) if noise > 0 else np.inf


class Noise:
    """The power of the difference between values and what they should be, beside their own."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, wanted: np.ndarray, found: np.ndarray) -> None:
        """Adds the values of a batch."""
        wanted = np.ravel(wanted).astype(np.float32, copy=False)
        error = np.ravel(found) - wanted
        # A batch in float32, which BLAS sums in parts, batches in float64.
        self.add_powers(float(np.dot(wanted, wanted)), float(np.dot(error, error)))

    def add_powers(self, signal: float, noise: float) -> None:
        """Adds a batch by its sums of squares: of the values, and of their difference."""
        self._signal += signal
        self._noise += noise

    @property
    def sqnr(self) -> float | None:
        """In dB, infinite without noise; None where there is neither noise nor signal."""
        if not self._signal:
            return None
        return sqnr(self._noise / self._signal)
