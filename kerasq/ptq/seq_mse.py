"""`seq_mse`: ranges of weights by the error that they leave in the outputs of their layer."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.ptq.samples import Samples
from kerasq.ptq.units import by_layer
from kerasq.ptq.walk import Walk
from kerasq.quantizers.uniform import Uniform
from kerasq.support import tables
from kerasq.support.restore import restored_on_error
from kerasq.support.sqnr import sqnr

# Parts of the largest weight that a range may be.
SHARES = np.linspace(0.3, 1.0, 36, dtype=np.float32)
# Bytes of samples for each layer: it is computed anew for each of them.
MEMORY = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightRanges:
    """What `seq_mse` did. Printing it gives a table.

    Attributes:
        layers: the layers whose weights have another range, in the order of the model.
        before, after: by layer, the SQNR of its output in dB, each on inputs from the quantized
            layers before.
        shares: by layer, the mean over channels of the range over the largest weight.
        left: layers that are called more than once, or whose weights have no range of their own:
            those of 8 bits follow the largest weight.
    """

    layers: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    shares: tuple[float, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        rows = [["layer", "before (dB)", "after (dB)", "share of the largest weight"]]
        columns = zip(self.layers, self.before, self.after, self.shares, strict=True)
        rows += [[name, f"{a:.1f}", f"{b:.1f}", f"{c:.2f}"] for name, a, b, c in columns]
        left = f"\n\nLeft as they are: {', '.join(self.left)}." if self.left else ""
        return tables.plain(rows) + left


def seq_mse(
    model: keras.Model, data: Any, *, steps: int | None = None, seed: int = 0
) -> WeightRanges:
    """Chooses the ranges of weights of fewer than 8 bits by the error of their layer's output.

    For each channel c, or the whole kernel where that has one scale, it takes the one of::

        min sum (a(x_q * Q(w_c)) - a(x * w_c))^2

    among 36 parts of the largest weight, and the range that there is. x_q comes from the layers
    before as they are quantized by then, x and w are those of the float network, Q rounds to the
    nearest code and a is the activation (AIMET documentation, "SeqMSE"; Nagel et al. 2021, arXiv
    2106.08295, section 3.1, equation 11, has the error of the weights alone, by which quantization
    starts).

    A cheap first step in front of `adaround`, which rounds on these ranges. Calibrate before.

    Args:
        model: what `quantize_model` returned, calibrated. The ranges of its weights change, nothing
            else.
        data: as for `adaround`.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.
        seed: of the draw of windows of images (`kerasq.adaround`).

    Raises:
        ValueError: for a model that is not quantized, has NaN weights or was changed by such a
            method already, and for data that `calibrate` refuses.
        UncalibratedError: where ranges have seen no data.
            After an error, or an interrupt, the model is as it was.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> x = np.array([[-1.0, 2.0], [0.5, 0.0]])
        >>> q = kerasq.quantize_model(model, "w4a8")
        >>> kerasq.calibrate(q, x)
        >>> kerasq.seq_mse(q, x).layers
        ('head',)
    """
    walk = Walk(model, data, steps, by_layer, _has_range, memory=MEMORY)
    found = {}
    variables = [v for x in walk.legal.values() for v in x.weight_quantizer.variables]
    with restored_on_error(variables):
        for pair in walk:
            found[pair[0].name] = _search(pair[0].wrappers[0], walk.seen(pair, seed))
    before, after, shares = zip(*found.values(), strict=True) if found else ((), (), ())
    return WeightRanges(
        layers=tuple(found), before=before, after=after, shares=shares, left=walk.left
    )


def _has_range(wrapper: KernelWrapper) -> bool:
    """Whether a layer's weights have a range that is a variable."""
    quantizer = wrapper.weight_quantizer
    return isinstance(quantizer, Uniform) and quantizer.range_gradient != "none"


def _search(wrapper: KernelWrapper, seen: Samples) -> tuple[float, float, float]:
    """Sets the range of a layer's weights: SQNR before and after, and the share of the largest."""
    quantizer, kernel = wrapper.weight_quantizer, wrapper.ranged_kernel()
    largest = tf.reduce_max(tf.abs(kernel), axis=[*range(kernel.shape.rank - 1)])
    candidates = [quantizer.range(kernel).numpy(), *(largest.numpy() * share for share in SHARES)]
    errors = np.stack([_error(wrapper, seen, high) for high in candidates])
    if wrapper.is_per_tensor:
        errors = errors.sum(axis=1, keepdims=True)
    best = errors.argmin(axis=0)
    chosen = np.take_along_axis(np.stack(candidates), best[None], axis=0)[0]
    quantizer.assign_range(chosen)
    power = float(np.sum(np.square(seen.y[0], dtype=np.float64))) or 1.0
    share = float(np.mean(chosen / np.maximum(largest.numpy(), np.finfo(np.float32).tiny)))
    return sqnr(errors[0].sum() / power), sqnr(errors.min(axis=0).sum() / power), share


def _error(wrapper: KernelWrapper, seen: Samples, high: np.ndarray) -> np.ndarray:
    """The squared error of the output with weights over ranges: of what shares one, as they are."""
    wrapper.weight_quantizer.assign_range(high)
    kernel, bias = wrapper.integer_weights().real(wrapper.input_grids()[0].scale)
    total = np.zeros(len(high))
    for i in range(0, len(seen), BATCH_SIZE):
        (x,), _, (y,) = seen[i : i + BATCH_SIZE]
        apart = tf.square(wrapper.clamp(wrapper.run_on(x, kernel, bias, seen.layer)) - y)
        # One for each range: of each channel, or of all.
        by_range = tf.reshape(apart, [-1, len(high), apart.shape[-1] // len(high)])
        total += tf.reduce_sum(by_range, axis=[0, 2]).numpy()
    return total
