"""`correct_biases`: the mean error that rounding weights leaves in each channel, taken out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.post_training import reference
from kerasq.support import tables
from kerasq.support.data import batch_spec, batches
from kerasq.support.progress import track
from kerasq.support.restore import restored_on_error
from kerasq.wrappers import infer, infer_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """What `correct_biases` did. Printing it gives a table.

    Attributes:
        layers: the layers whose bias was corrected, in the order of the model.
        shifts: by layer, the root mean square over channels of what was added to its bias, in steps
            of the output's grid.
        left: layers that have no bias that could be.
        samples: how many samples the means are of.
    """

    layers: tuple[str, ...]
    shifts: tuple[float, ...]
    left: tuple[str, ...]
    samples: int

    def __str__(self) -> str:
        rows = [["layer", "shift (steps)"]]
        rows += [[name, f"{x:.3f}"] for name, x in zip(self.layers, self.shifts, strict=True)]
        left = f"\nWithout a bias: {', '.join(self.left)}." if self.left else ""
        return f"{tables.plain(rows)}\n\nMeans over {self.samples} samples.{left}"


def correct_biases(model: keras.Model, data: Any, *, steps: int | None = None) -> BiasCorrection:
    """Corrects the biases of a calibrated model by the mean errors of its sums.

    `b[c] += E[y[c]] - E[y_q[c]]`, y being the values of channel c in the float network, in front
    of the activation, and y_q those of the quantized one, on its integer kernels; the layers in
    their order, each behind those corrected before (Nagel et al. 2019, arXiv 1906.04721, section
    4.2, appendix D: empirical). Where a BatchNormalization is behind the layer, its beta is the
    bias. A layer that is called more than once gets the mean over its calls.

    Calibrate before. Once, and not behind `adaround`: a quantized model holds the float network
    with the weights of today. Fine-tuning makes it superfluous.

    Args:
        model: what `quantize_model` returned, calibrated. Its biases change, nothing else.
        data: as for `calibrate`; some hundred samples are enough. All are kept in memory.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.

    Raises:
        ValueError: for a model that is not quantized, has NaN weights, or was changed by such a
            method already, and for data that `calibrate` refuses.
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
    calls = calls_of_kernels(model)
    found = {name: _bias(own[0]) for name, own in calls.items()}
    biases = {name: bias for name, bias in found.items() if bias is not None}
    samples = list(batches(model, data, BATCH_SIZE, steps))
    # The float network has the biases of before: its means come first.
    wanted = _means(model, is_float=True)(samples)
    quantized = _means(model, is_float=False)
    shifts = []
    with restored_on_error(biases.values()):
        for name, bias in track(biases.items(), len(biases), "layer"):
            means = quantized(samples)
            apart = np.mean([wanted[x.name] - means[x.name] for x in calls[name]], axis=0)
            bias.assign_add(apart)
            step = float(calls[name][0].grid().scale)
            shifts.append(float(np.sqrt(np.mean(np.square(apart)))) / step)
    reference.mark(model, "correct_biases")
    return BiasCorrection(
        layers=tuple(biases),
        shifts=tuple(shifts),
        left=tuple(name for name in calls if name not in biases),
        samples=sum(len(keras.tree.flatten(x)[0]) for x in samples),
    )


def calls_of_kernels(model: keras.Model) -> dict[str, list[KernelWrapper]]:
    """By the name of its first call, the calls of each layer with a kernel, in order."""
    found: dict[str, list[KernelWrapper]] = {}
    for node in graph.calls(model):
        layer = node.layer
        # Constants, such as of a Rescaling, have no bias that training would find.
        if isinstance(layer, KernelWrapper) and not getattr(layer.layer, "constant", False):
            found.setdefault((layer.leader or layer).name, []).append(layer)
    return found


def _bias(wrapper: KernelWrapper) -> keras.Variable | None:
    """What is added to a layer's sums; None for nothing."""
    norm = wrapper.batch_norm
    return wrapper.bias if norm is None else norm.beta if norm.center else None


def _means(model: keras.Model, *, is_float: bool) -> Callable[[list], dict[str, np.ndarray]]:
    """A function of batches to the mean of each channel, by call of a layer with a kernel.

    Of the values in front of the activation, in the float network or in the quantized one.
    """

    @tf.function(input_signature=[batch_spec(model.input)], autograph=False)
    def totals(x: Any) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        found = {}

        def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
            layer = node.layer
            if isinstance(layer, KernelWrapper):
                y = layer.run_float(*args) if is_float else _sums(layer, *args)
                flat = tf.reshape(tf.cast(y, tf.float64), [-1, y.shape[-1]])
                found[layer.name] = tf.reduce_sum(flat, axis=0), tf.shape(flat)[0]
            return (infer_float if is_float else infer)(node, *args, **kwargs)

        graph.run(model, x, call)
        return found

    def means(samples: list) -> dict[str, np.ndarray]:
        found = [totals(x) for x in samples]
        # Batches may be of several sizes.
        return {
            name: sum(x[name][0].numpy() for x in found) / sum(int(x[name][1]) for x in found)
            for name in found[0]
        }

    return means


def _sums(wrapper: KernelWrapper, inputs: tf.Tensor) -> tf.Tensor:
    """What the integer accumulators stand for, before they are rounded to the output's grid."""
    (grid,), weights = wrapper.input_grids(), wrapper.integer_weights()
    step = tf.cast(grid.scale, tf.float64) * tf.cast(weights.grid.scale, tf.float64)
    return tf.cast(wrapper.sums(inputs, grid, weights), tf.float64) * step
