"""What there is to see of a kernel: histograms, codes, a box for each channel, outliers."""

import dataclasses
from typing import Any

import numpy as np

from kerasq.grid import Grid
from kerasq.reporting.counts import CodeCounts, ValueCounts
from kerasq.support.sqnr import sqnr

# At most so many channels are drawn, the widest among them.
CHANNELS = 48
_WIDEST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a layer, in figures.

    Attributes:
        bits: width of the codes.
        codes_used: how many codes occur, of all channels.
        codes: how many there are.
        sqnr: of the kernel on its grid beside the float one, in dB; None where that is not known.
        outlier: the largest weight of a channel over its 99th percentile (at least the second
            largest), where that is greatest; with one scale a tensor, the widest channel's largest
            weight over that of the median channel.
        outlier_channel: the channel of that.
        per_tensor: whether all channels have one scale.
        drawn: histograms and boxes, for JSON.
    """

    bits: int
    codes_used: int
    codes: int
    sqnr: float | None
    outlier: float
    outlier_channel: int
    per_tensor: bool
    drawn: dict[str, Any]


def weights(
    codes: np.ndarray, grid: Grid, kernel: np.ndarray | None, before: np.ndarray | None
) -> Weights:
    """The figures of a kernel.

    Args:
        codes: the integers, channels in the last axis.
        grid: theirs, of a scale for each channel, or one.
        kernel: the float kernel that they stand for; None where only the file is known.
        before: the float kernel as it was trained; None where it is the same.
    """
    codes = codes.reshape(-1, codes.shape[-1])
    quantized = np.float32(grid.scale) * codes.astype(np.float32)
    known = quantized if kernel is None else kernel.reshape(codes.shape)
    counts = CodeCounts(grid)
    counts.add(codes)
    per_tensor = np.ndim(grid.scale) == 0 or np.size(grid.scale) == 1
    outlier, channel = outliers(known, per_tensor)
    shown = _shown(known)
    boxes = {"channel": shown.tolist(), "after": _boxes(known[:, shown])}
    if before is not None and before.size == codes.size:
        boxes["before"] = _boxes(before.reshape(codes.shape)[:, shown])
    reach = np.broadcast_to(np.float32(grid.scale) * grid.qmax, codes.shape[-1:])
    boxes["reach"] = reach[shown].tolist()
    return Weights(
        bits=grid.bits,
        codes_used=counts.used,
        codes=grid.qmax - grid.qmin + 1,
        sqnr=None if kernel is None else _sqnr(known, quantized),
        outlier=outlier,
        outlier_channel=channel,
        per_tensor=per_tensor,
        drawn={
            "float": None if kernel is None else _histogram(known, quantized, known),
            "quantized": _histogram(known, quantized, quantized),
            "codes": counts.figures(),
            "channels": boxes,
        },
    )


def outliers(kernel: np.ndarray, per_tensor: bool) -> tuple[float, int]:
    """`Weights.outlier` of a kernel `(weights, channels)`, and the channel of it."""
    sizes = np.sort(np.abs(kernel), axis=0)
    peaks = sizes[-1]
    if per_tensor:
        channel = int(peaks.argmax())
        return _ratio(float(peaks[channel]), float(np.median(peaks))), channel
    if len(sizes) < 2:
        return 1.0, 0
    rest = sizes[min(len(sizes) - 2, int(0.99 * len(sizes)))]
    ratios = np.divide(peaks, rest, out=np.ones_like(peaks), where=rest > 0)
    return float(ratios.max()), int(ratios.argmax())


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 1.0


def _sqnr(wanted: np.ndarray, found: np.ndarray) -> float | None:
    signal = float(np.square(wanted, dtype=np.float64).sum())
    noise = float(np.square(wanted - found, dtype=np.float64).sum())
    return sqnr(noise / signal) if signal else None


def _shown(kernel: np.ndarray) -> np.ndarray:
    """The channels to draw: all, or some at equal distances and the widest."""
    count = kernel.shape[-1]
    if count <= CHANNELS:
        return np.arange(count)
    widest = np.argsort(-np.abs(kernel).max(0))[:_WIDEST]
    even = np.linspace(0, count - 1, CHANNELS - _WIDEST).astype(int)
    return np.unique(np.concatenate([even, widest]))


def _boxes(kernel: np.ndarray) -> list[list[float]]:
    """By channel its least value, quartiles and greatest value."""
    # By their places in order, which takes a tenth of the time of interpolated quantiles.
    places = np.rint(np.array([0, 0.25, 0.5, 0.75, 1]) * (len(kernel) - 1)).astype(int)
    return np.sort(kernel, axis=0)[places].T.tolist()


def _histogram(one: np.ndarray, other: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    """A histogram of one of two arrays in bins for both."""
    low, high = min(one.min(), other.min()), max(one.max(), other.max())
    counts = ValueCounts(float(low), float(high))
    counts.add(x)
    return counts.figures()
