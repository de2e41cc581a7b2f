"""`correct_biases`: the mean error that rounding weights leaves in each channel, taken out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.calibration.input_moments import Pairs
from kerasq.calibration.propagation import propagate
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.ptq import reference
from kerasq.ptq.samples import Samples
from kerasq.ptq.units import by_layer, calls_of_kernels
from kerasq.ptq.walk import Walk
from kerasq.support import tables
from kerasq.support.progress import track
from kerasq.support.restore import restored_on_error
from kerasq.wrappers import wrapped


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """What `correct_biases` did. Printing it gives a table.

    Attributes:
        layers: the layers whose bias was corrected, in the order of the model.
        shifts: by layer, the root mean square over channels of what was added to its bias, in steps
            of the output's grid.
        left: layers that have no bias that could be.
        samples: how many samples the means are of; 0 where they are analytic.
        method: "empirical", by data, or "analytic", by the statistics of BatchNormalization.
    """

    layers: tuple[str, ...]
    shifts: tuple[float, ...]
    left: tuple[str, ...]
    samples: int
    method: str = "empirical"

    def __str__(self) -> str:
        rows = [["layer", "shift (steps)"]]
        rows += [[name, f"{x:.3f}"] for name, x in zip(self.layers, self.shifts, strict=True)]
        left = f"\nWithout a bias: {', '.join(self.left)}." if self.left else ""
        means = f"over {self.samples} samples"
        if self.method == "analytic":
            means = "from the statistics of BatchNormalization"
        return f"{tables.plain(rows)}\n\nMeans {means}.{left}"


def correct_biases(
    model: keras.Model,
    data: Any = None,
    *,
    steps: int | None = None,
    input_range: Pairs | None = None,
    input_moments: Pairs | None = None,
) -> BiasCorrection:
    """Corrects the biases of a calibrated model by the mean errors of its sums.

    With data::

        b[c] += sum over A of (a(y[c]) - a(y_q[c])) / |A|,

    y being the values of channel c in the float network, y_q those of the quantized one on its
    integer kernels, a the activation, and A all places where one of them is within its limits: what
    a ReLU cuts off does not count. The layers are corrected in order, each behind those before
    (Nagel et al. 2019, arXiv 1906.04721, section 4.2, appendix D: empirical; there of all values in
    front of the activation, which is 0.8 dB behind on ResNet8 at w4a8). Where a BatchNormalization
    is behind the layer, its beta is the bias. A layer that is called more than once gets the mean
    over its calls.

    Without data, `b -= mean over places of (W_q - W) * E[x]`: of what weights lose in rounding, as
    inference has them, BatchNormalization folded, times the means of the layer's inputs in the
    float network (section 4.2.1, appendix C: analytic). These follow from the statistics of
    BatchNormalization, as the ranges of `calibrate_without_data` do. Unlike in the paper each place
    of an image has a mean of its own, so that zeros beside its border count as zeros. Errors of
    activations are not seen: give data where there are some.

    Calibrate before. Once, and not behind `adaround`: a quantized model holds the float network
    with the weights of today. Fine-tuning makes it superfluous.

    Args:
        model: what `quantize_model` returned, calibrated. Its biases change, nothing else.
        data: as for `adaround`; some hundred samples are enough. None for the statistics of
            BatchNormalization in their place.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.
        input_range: without data, the ends of what the model is fed, as for
            `calibrate_without_data`; None for what the grids of its inputs reach.
        input_moments: without data, means and deviations of it, as there.

    Raises:
        ValueError: for a model that is not quantized, has NaN weights, or was changed by such a
            method already, for data that `calibrate` refuses; without data, for what
            `calibrate_without_data` refuses; and for arguments of one way beside those of the
            other.
        UncalibratedError: where ranges have seen no data.
            After an error, or an interrupt, the model is as it was.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> x = np.array([[-1.0, 2.0], [0.5, 0.0]])
        >>> q = kerasq.quantize_model(model, "w4a8")
        >>> kerasq.calibrate(q, x)
        >>> kerasq.correct_biases(q, x).layers
        ('head',)
    """
    reference.check(model)
    _check(data, steps, input_range, input_moments)
    calls = calls_of_kernels(model)
    biases = _biases(calls)
    count = 0
    # The float network has the biases of before: what is wanted comes first.
    if data is None:
        missing = _analytic(model, calls, input_range, input_moments)
    else:
        walk = Walk(model, data, steps, by_layer, _has_bias, shared=True)
        missing, count = _empirical(walk), walk.samples
    shifts = []
    with restored_on_error(biases.values()):
        for name, bias in track(biases.items(), len(biases), "layer"):
            apart = missing(name)
            bias.assign_add(apart)
            step = float(calls[name][0].grid().scale)
            shifts.append(float(np.sqrt(np.mean(np.square(apart)))) / step)
    reference.mark(model, "correct_biases")
    return BiasCorrection(
        layers=tuple(biases),
        shifts=tuple(shifts),
        left=tuple(name for name in calls if name not in biases),
        samples=count,
        method="analytic" if data is None else "empirical",
    )


def _check(
    data: Any, steps: int | None, input_range: Pairs | None, input_moments: Pairs | None
) -> None:
    """Raises a ValueError for arguments that the other way has."""
    other: dict[str, Any] = {"steps": steps}
    if data is not None:
        other = {"input_range": input_range, "input_moments": input_moments}
    if given := [name for name, value in other.items() if value is not None]:
        raise ValueError(
            "`steps` is for data, `input_range` and `input_moments` are for their place. "
            f"Received: {given} {'without' if data is None else 'beside'} `data`. Leave it out."
        )


# By name, what is missing in the mean of each channel of a layer, over all its calls.
_Missing = Callable[[str], np.ndarray]


def _empirical(walk: Walk) -> _Missing:
    """By the outputs of both networks, of the quantized one as it is by then."""

    def missing(name: str) -> np.ndarray:
        first, *rest = walk.calls[name]
        # What is between two calls is yet to be corrected.
        seen = [(first, walk.seen(first, 0)), *((x, walk.foreseen(x, 0)) for x in rest)]
        found = [_apart(pair[0].wrappers[0], own) for pair, own in seen]
        error, count = np.sum(found, axis=0)
        return error / np.maximum(count, 1.0)

    return missing


def _analytic(
    model: keras.Model,
    calls: dict[str, list[KernelWrapper]],
    input_range: Pairs | None,
    input_moments: Pairs | None,
) -> _Missing:
    """By the means of inputs that follow from BatchNormalization, and what weights lose."""
    for layer in wrapped(model):
        layer.checked_grid()
    moments, remarks = propagate(model, input_range, input_moments)
    for remark in remarks:
        print(remark)
    read = {node.layer.name: graph.tensor_name(node.inputs[0]) for node in graph.calls(model)}

    def missing(name: str) -> np.ndarray:
        found = [_lost(layer, moments[read[layer.name]].mean) for layer in calls[name]]
        return -np.mean(found, axis=0)

    return missing


def _lost(layer: KernelWrapper, mean: tf.Tensor) -> np.ndarray:
    """The mean of each channel of what rounding weights adds to the output."""
    rounded, _ = layer.integer_weights().real(layer.input_grids()[0].scale)
    y = layer.run_on(mean, rounded - layer.folded_kernel(), None)
    flat = tf.reshape(tf.cast(y, tf.float64), [-1, y.shape[-1]])
    return tf.reduce_mean(flat, axis=0).numpy()


def _biases(calls: dict[str, list[KernelWrapper]]) -> dict[str, keras.Variable]:
    """What is added to the sums of each layer that adds something."""
    found = {name: _bias(own[0]) for name, own in calls.items()}
    return {name: bias for name, bias in found.items() if bias is not None}


def _has_bias(wrapper: KernelWrapper) -> bool:
    return _bias(wrapper) is not None


def _bias(wrapper: KernelWrapper) -> keras.Variable | None:
    """What is added to a layer's sums; None for nothing."""
    norm = wrapper.batch_norm
    return wrapper.bias if norm is None else norm.beta if norm.center else None


def _apart(wrapper: KernelWrapper, seen: Samples) -> tuple[np.ndarray, np.ndarray]:
    """By channel, the sum of what a call's outputs lack, and the number of places that count."""
    kernel, bias = wrapper.integer_weights().real(wrapper.input_grids()[0].scale)
    low, high = (wrapper.clamp(tf.constant(end)) for end in (-np.inf, np.inf))
    error, count = np.zeros(bias.shape[-1]), np.zeros(bias.shape[-1])
    for i in range(0, len(seen), BATCH_SIZE):
        (x,), _, (y,) = seen[i : i + BATCH_SIZE]
        sums = wrapper.run_on(x, kernel, bias, seen.layer)
        found = wrapper.clamp(sums)
        counts = (found == sums) | ((y > low) & (y < high))
        axes = [*range(y.ndim - 1)]
        error += tf.reduce_sum(tf.cast(y - found, tf.float64), axis=axes).numpy()
        count += tf.reduce_sum(tf.cast(counts, tf.float64), axis=axes).numpy()
    return error, count
