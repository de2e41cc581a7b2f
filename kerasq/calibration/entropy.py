"""Ranges that lose the least information, by Kullback and Leibler's divergence."""

import keras
import numpy as np

from kerasq.calibration.histogram import Histogram

# Thresholds are tried from so many bins on.
FIRST = 128


@keras.saving.register_keras_serializable("kerasq")
class Entropy(Histogram):
    """Range within which codes tell the most of the distribution of magnitudes: TensorRT's method.

    Of `P`, the histogram of `|x|` in 2,048 bins, and each threshold of i bins, from 128 on: values
    beyond the threshold count as the last bin below it; `Q` has the bins below it in as many groups
    as the grid has codes there, each spread evenly over its bins that are not empty. The threshold
    is that of the least `KL(P || Q) = sum P log(P / Q)`, of several the widest (Migacz, "8-bit
    inference with TensorRT", GTC 2017; Wu et al. 2020, arXiv 2004.09602, section 4). Where the
    first batch sets the width of TensorRT's bins, here it is the power of two that holds all
    values, whatever their order. As there, the first bin counts as the second does, so that zeros
    behind a ReLU do not weigh. Thresholds with no more full bins below than codes are left out.

    Grids of as many codes as bins, of 16 bits, get all values.
    """

    def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
        """The ends, cut at the threshold on either side."""
        half = self.BINS // 2
        codes = 2**bits if self.is_one_sided and not symmetric else 2 ** (bits - 1)
        if not self.is_finite or codes >= half:
            return self.low, self.high
        counts = (self.counts[half:] + self.counts[half - 1 :: -1]).astype(np.float64)
        counts[0] = counts[1]
        width = 2.0**self.exponent / half
        # Beyond the largest value there is nothing to choose, and of no more full bins than codes
        # each has its own: Q is P, however much lies beyond.
        full = np.cumsum(counts > 0)
        tried = np.flatnonzero((full > codes) & (counts > 0)) + 1
        tried = tried[tried >= FIRST]
        if not len(tried):
            return self.low, self.high
        lost = [_divergence(counts, int(bins), codes) for bins in tried]
        last = len(lost) - 1 - int(np.argmin(lost[::-1]))
        threshold = float(tried[last] * width)
        return max(self.low, -threshold), min(self.high, threshold)


def _divergence(counts: np.ndarray, bins: int, codes: int) -> float:
    """`KL(P || Q)` of a threshold of so many bins, for so many codes below it."""
    inside = counts[:bins]
    is_full = inside > 0
    group = np.arange(bins) * codes // bins
    total = np.bincount(group, inside, codes)
    full = np.bincount(group, is_full, codes)
    spread = (total / np.maximum(full, 1))[group][is_full]
    kept = inside.copy()
    kept[-1] += counts[bins:].sum()
    p, q = kept[is_full] / kept.sum(), spread / spread.sum()
    return float(np.sum(p * np.log(p / q)))
