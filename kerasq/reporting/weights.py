"""What there is to see of a kernel: histograms, codes, boxes of channels, outliers; its biases."""

import dataclasses
from typing import Any

import numpy as np

from kerasq.grid import Grid
from kerasq.reporting.counts import CodeCounts, ValueCounts
from kerasq.support.sqnr import sqnr

# At most so many channels are drawn, the widest among them.
CHANNELS = 48
_WIDEST = 8
# A weight so many times as large as the others of its channel takes the codes from them.
OUTLIER = 5.0
# A bias of such a share of the largest code has nowhere to go.
_FULL = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a layer, in figures.

    Attributes:
        bits: width of the codes.
        codes_used: how many codes occur, of all channels.
        codes: how many there are.
        sqnr: of the kernel on its grid beside the float one, in dB; None where that is not known.
        outlier: the largest weight of a channel over its 99th percentile (at least the second
            largest), where that does most harm; with one scale a tensor, the widest channel's
            largest weight over that of the median channel.
        outlier_channel: the channel of that.
        outlier_sqnr: of the weights that share their scale with it, in dB: their power, or that of
            the median channel where this is greater, over that of rounding, `step^2 / 12`.
        per_tensor: whether all channels have one scale.
        bias_bits: what the largest code of the biases takes, sign included; None without biases.
        bias_sqnr: of the biases on their grid, that of the sums, in dB.
        bias_error: the largest error of a bias on its grid, in steps of the output.
        bias_full: how many biases have the largest code that there may be, or all but.
        drawn: histograms, boxes and biases, for JSON.
    """

    bits: int
    codes_used: int
    codes: int
    sqnr: float | None
    outlier: float
    outlier_channel: int
    outlier_sqnr: float
    per_tensor: bool
    drawn: dict[str, Any]
    bias_bits: int | None = None
    bias_sqnr: float | None = None
    bias_error: float | None = None
    bias_full: int = 0


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
    step = np.broadcast_to(np.float32(grid.scale), codes.shape[-1:])
    outlier, channel, harm = outliers(known, step, per_tensor)
    shown = _shown(known)
    boxes = {"channel": shown.tolist(), "after": _boxes(known[:, shown])}
    if before is not None and before.size == codes.size:
        boxes["before"] = _boxes(before.reshape(codes.shape)[:, shown])
    boxes["reach"] = (step * grid.qmax)[shown].tolist()
    return Weights(
        bits=grid.bits,
        codes_used=counts.used,
        codes=grid.qmax - grid.qmin + 1,
        sqnr=None if kernel is None else _sqnr(known, quantized),
        outlier=outlier,
        outlier_channel=channel,
        outlier_sqnr=harm,
        per_tensor=per_tensor,
        drawn={
            "float": None if kernel is None else _histogram(known, quantized, known),
            "quantized": _histogram(known, quantized, quantized),
            "codes": counts.figures(),
            "channels": boxes,
        },
    )


def with_bias(
    found: Weights,
    codes: np.ndarray,
    step: np.ndarray,
    limit: float,
    bias: np.ndarray | None = None,
    out_step: float | None = None,
) -> Weights:
    """The figures of a kernel, and of its biases.

    Rounding moves an output by `bias - codes * step`, of which `bias_error` is in its steps: below
    half a step, biases are not the fault.

    Args:
        found: the figures of the kernel.
        codes: the integers, `(channels,)`.
        step: of the sums, `s_in * s_w`, a number or `(channels,)`.
        limit: what codes stay below.
        bias: the real values that they stand for; None where only the file is known.
        out_step: of the output; None where that is float.
    """
    codes = codes.astype(np.float64)
    drawn, error = _drawn_biases(codes, step, limit, bias, out_step)
    return dataclasses.replace(
        found,
        bias_bits=int(np.abs(codes).max(initial=0)).bit_length() + 1,
        bias_sqnr=None if bias is None else _sqnr(bias, codes * step),
        bias_error=None if error is None else float(np.abs(error).max(initial=0)),
        bias_full=int(np.count_nonzero(np.abs(codes) >= _FULL * limit)),
        drawn={**found.drawn, "biases": drawn},
    )


def _drawn_biases(
    codes: np.ndarray,
    step: np.ndarray,
    limit: float,
    bias: np.ndarray | None,
    out_step: float | None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Biases in steps of their grid, and the errors of all in steps of the output."""
    error = None if bias is None or out_step is None else (codes * step - bias) / out_step
    # The largest errors, else the largest codes, are among what is drawn.
    shown = _shown((codes if error is None else error)[None])
    drawn: dict[str, Any] = {"channel": shown.tolist(), "limit": limit}
    drawn["codes"] = codes[shown].tolist()
    if bias is not None:
        drawn["float"] = (bias / step)[shown].tolist()
    if error is not None:
        drawn["error"] = error[shown].tolist()
    return drawn, error


def outliers(kernel: np.ndarray, step: np.ndarray, per_tensor: bool) -> tuple[float, int, float]:
    """`Weights.outlier`, `outlier_channel` and `outlier_sqnr` of a kernel `(weights, channels)`."""
    sizes = np.sort(np.abs(kernel), axis=0)
    peaks, power = sizes[-1], np.square(kernel, dtype=np.float64)
    # All weights of one scale share the outlier's step. Rounding does no harm to a channel that is
    # next to nothing beside others.
    own = power.mean(0)
    own = np.full_like(own, power.mean()) if per_tensor else np.maximum(own, np.median(own))
    ratio = 12 * own / np.square(np.maximum(step, 1e-30))
    harm = 10 * np.log10(np.maximum(ratio, 1e-30))
    rest = np.median(peaks) if per_tensor else sizes[min(len(sizes) - 2, int(0.99 * len(sizes)))]
    # A kernel of one weight a channel has no others.
    is_alone = len(sizes) < 2 and not per_tensor
    known = np.broadcast_to((rest > 0) & ~np.bool_(is_alone), peaks.shape)
    ratios = np.divide(peaks, rest, out=np.ones_like(peaks), where=known)
    # Of several that stand out, the one that rounds the others most.
    stands_out = ratios >= min(OUTLIER, ratios.max())
    channel = int(np.where(stands_out, harm, np.inf).argmin())
    if per_tensor:
        channel = int(peaks.argmax())
    return float(ratios[channel]), channel, float(harm[channel])


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
