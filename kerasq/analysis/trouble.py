"""What goes wrong in training: values and weights beyond their ranges, layers that are dead."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.quantizers.activations import NARROWEST, ActivationQuantizer
from kerasq.quantizers.uniform import Uniform
from kerasq.support.data import batch_spec, batches
from kerasq.support.finite import not_finite
from kerasq.support.shared import traced_if_often
from kerasq.wrappers import QuantizeWrapper, ranged

# The share beyond a range that is trouble, by whether there are 8 bits or more. Where codes are
# few, clipping is what training finds best: 2 bits cut 5 to 10 % of a normal distribution.
MOST_CLIPPED = {True: 0.03, False: 0.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """What is wrong with a layer, and what to do.

    Attributes:
        layer: its name; "" for the whole model.
        what: the trouble and the figure that shows it.
        advice: what helps.
    """

    layer: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.layer or 'The model'}: {self.what}. {self.advice}"


def observer(model: keras.Model) -> Callable[[Any], None]:
    """A function of data, as for `kerasq.calibrate`, that notes what each range sees of them.

    That is `ActivationQuantizer.clipped`, the share of values that lie more than half a step beyond
    the range, and `is_constant`, whether all of them got one code; as in inference, with the
    statistics of BatchNormalization.

    Args:
        model: what `quantize_model` returned.
    """
    quantizers = ranged(model)

    @traced_if_often(batch_spec(model.input))
    def statistics(x: Any) -> dict[str, tf.Tensor]:
        found = {}

        def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
            layer = node.layer
            if not isinstance(layer, QuantizeWrapper):
                return graph.infer(layer, *args, **kwargs)
            raw = layer.run_fake_quant(args[0], training=False)
            y = layer.on_grid(raw, training=False)
            if layer.output_quantizer is not None:
                found[layer.name] = _statistics(layer.output_quantizer, raw, y)
            return y

        graph.run(model, x, call)
        return found

    def observe(data: Any) -> None:
        found, samples = [], []
        for x in batches(model, data, BATCH_SIZE):
            found.append(statistics(x))
            samples.append(len(keras.tree.flatten(x)[0]))
        for name, quantizer in quantizers.items():
            shares, least, greatest = np.transpose([one[name] for one in found])
            quantizer.clipped = float(np.average(shares, weights=samples))
            quantizer.is_constant = bool(least.min() == greatest.max())

    return observe


def _statistics(quantizer: ActivationQuantizer, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The share of values beyond the range, and the least and the greatest value on its grid."""
    low, high = quantizer.range()
    half = (high - low) / (2.0 * (2**quantizer.bits - 1))
    x = quantizer.clamp(x)
    share = tf.reduce_mean(tf.cast((x < low - half) | (x > high + half), tf.float32))
    return tf.stack([share, tf.reduce_min(y), tf.reduce_max(y)])


def find(model: keras.Model) -> list[Trouble]:
    """The troubles of a quantized model, in the order of its layers.

    Those of weights and ranges can be seen at any time; those of values once `observer`'s function
    has run, as `kerasq.CheckTraining` does after each epoch.
    """
    return [
        found
        for layer in model.layers
        if isinstance(layer, QuantizeWrapper)
        for found in _of_layer(layer)
    ]


def _of_layer(layer: QuantizeWrapper) -> list[Trouble]:
    """The troubles of one layer."""
    if broken := not_finite(layer):
        advice = "Go back to the last checkpoint and train at a lower learning rate."
        what = f"NaN or infinite values in {', '.join(broken)}"
        return [Trouble(layer=layer.name, what=what, advice=advice)]
    found = [] if layer.output_quantizer is None else _of_range(layer.output_quantizer)
    if isinstance(layer, KernelWrapper) and layer.leader is None:
        found += _of_kernel(layer)
    return [Trouble(layer=layer.name, what=what, advice=advice) for what, advice in found]


def _of_range(quantizer: ActivationQuantizer) -> list[tuple[str, str]]:
    """What is wrong with the range of an activation."""
    if not quantizer.has_seen_data():
        return []
    low, high = (float(end) for end in quantizer.range())
    if high - low <= 2 * NARROWEST:
        advice = "Calibrate again, and lower the learning rate of the range, or do not learn it."
        return [(f"its range has collapsed, to [{low:.3g}, {high:.3g}]", advice)]
    if quantizer.is_constant:
        advice = "It tells nothing: lower the learning rate, or remove the layer."
        return [("its output is constant", advice)]
    share, most = quantizer.clipped, MOST_CLIPPED[quantizer.bits >= 8]
    if share is None or share <= most:
        return []
    what = f"{100 * share:.1f} % of its values lie beyond its range, [{low:.3g}, {high:.3g}]"
    if quantizer.is_input:
        return [(what, "Feed it what it was calibrated on: the same preprocessing of the data.")]
    return [(what, "Calibrate again, or let the range train on (no freezing before it fits).")]


def _of_kernel(layer: KernelWrapper) -> list[tuple[str, str]]:
    """What is wrong with a kernel: weights that its range leaves out."""
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, Uniform):
        return []  # Others' codes reach as far as their weights, or are meant to clip.
    kernel = layer.ranged_kernel()
    reach = quantizer.range(kernel) + 0.5 * quantizer.scale(kernel)
    share = float(tf.reduce_mean(tf.cast(tf.abs(kernel) > reach, tf.float32)))
    if share <= MOST_CLIPPED[quantizer.bits >= 8]:
        return []
    what = f"{100 * share:.1f} % of its weights lie beyond their range"
    return [(what, 'Lower the learning rate, or let ranges follow: range_gradient="none".')]
