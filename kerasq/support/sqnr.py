"""The signal to quantization noise ratio, in dB: of powers, or of values batch by batch."""

import numpy as np

# Of values below which float32 loses the squares of a thousandth.
_LEAST_POWER = 1e-25


def sqnr(noise: float) -> float:
    """`-10 log10` of the power of the noise over that of the signal; infinite without noise."""
    # NaN stays NaN: what is not known is not perfect.
    return np.inf if noise <= 0 else float(-10 * np.log10(noise))


class Noise:
    """The power of the difference between values and what they should be, beside their own."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, wanted: np.ndarray, found: np.ndarray) -> None:
        """Adds the values of a batch."""
        wanted = np.ravel(wanted).astype(np.float32, copy=False)
        error = np.ravel(found) - wanted
        # A batch in float32, which BLAS sums in parts, batches in float64; and all, where it
        # overflows, or squares are next to 0.
        with np.errstate(over="ignore", invalid="ignore"):
            powers = [np.dot(x, x) for x in (wanted, error)]
        if not (np.isfinite(powers).all() and powers[0] > _LEAST_POWER):
            powers = [np.square(x, dtype=np.float64).sum() for x in (wanted, error)]
        self.add_powers(*map(float, powers))

    def add_powers(self, signal: float, noise: float) -> None:
        """Adds a batch by its sums of squares: of the values, and of their difference."""
        self._signal += signal
        self._noise += noise

    @property
    def sqnr(self) -> float | None:
        """In dB, infinite without noise; None where there is no signal, or no finite one."""
        if not self._signal or not np.isfinite(self._signal):
            return None
        return sqnr(self._noise / self._signal)
