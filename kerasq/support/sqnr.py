"""The signal to quantization noise ratio, in dB."""

import numpy as np


def sqnr(noise: float) -> float:
    """`-10 log10` of the power of the noise over that of the signal; infinite without noise."""
    return float(-10 * np.log10(noise)) if noise > 0 else np.inf
