"""Folding of BatchNormalization into the layer before it."""

import math

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import registry


def pairs(graph: graphs.Graph) -> list[tuple[graphs.Node, graphs.Node]]:
    """The calls of a layer with a kernel that only a BatchNormalization reads, with that call.

    All calls of a layer that is called more than once must have the same one behind them.
    """
    found: list[tuple[graphs.Node, graphs.Node]] = []
    for node in graph.nodes:
        rule = registry.find(node.layer)
        if rule is None or rule.kernel is None:
            continue
        after = graph.only_consumer(node)
        if (
            after is not None
            and isinstance(after.layer, keras.layers.BatchNormalization)
            and after.layer.axis in (-1, len(node.output.shape) - 1)
            and registry.activation_name(node.layer) == "linear"
            and hasattr(node.layer, "use_bias")  # Folding needs one.
        ):
            found.append((node, after))
    norms: dict[str, set] = {}
    behind = {id(node): graph.leaders[after.layer.name] for node, after in found}
    for node in graph.nodes:
        norms.setdefault(graph.leaders[node.layer.name], set()).add(behind.get(id(node)))
    return [pair for pair in found if len(norms[graph.leaders[pair[0].layer.name]]) == 1]


def gain_and_bias(
    norm: keras.layers.BatchNormalization, bias: keras.KerasTensor | None
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Gain and bias that stand for a BatchNormalization in inference, each `(channels,)`.

    `gain = gamma / sqrt(variance + epsilon)`, `bias' = beta + (bias - mean) * gain`
    (Jacob et al. 2018, section 3.2).

    Args:
        norm: the BatchNormalization.
        bias: bias of the layer before it, or None.
    """
    gain = keras.ops.rsqrt(norm.moving_variance.value + norm.epsilon)
    if norm.scale:
        gain = gain * norm.gamma.value
    shift = -norm.moving_mean.value if bias is None else bias - norm.moving_mean.value
    shift = shift * gain
    return gain, shift + norm.beta.value if norm.center else shift


def fold(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> tuple[keras.Layer, float]:
    """A layer with bias and a factor r: with its kernel times r it equals `layer` and `norm`.

    Without BatchNormalization a kernel is no longer scale-invariant: behind pixels of 0..255, a
    learning rate that suited the float model makes it diverge. So the kernel that is trained is
    kept in units in which its inputs have variance 1, estimated from the variances that the
    BatchNormalization knows:

        1 / r = median over channels c of sqrt(variance_c + epsilon) / norm2(kernel_c)

    rounded to a power of two, so that weights that are powers of two stay such.

    Args:
        layer: a layer with a kernel, linear, built; it is not changed.
        norm: the BatchNormalization behind it.

    Returns:
        The new layer, and r.
    """
    rule = registry.rule(layer)
    gain, bias = gain_and_bias(norm, layer.bias.value if layer.use_bias else None)
    variable = getattr(layer, str(rule.kernel))
    kernel = keras.ops.convert_to_numpy(rule.flatten(variable.value))
    norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    deviation = np.sqrt(keras.ops.convert_to_numpy(norm.moving_variance.value) + norm.epsilon)
    used = norms > 0
    factor = float(np.median(norms[used] / deviation[used])) if used.any() else 1.0
    factor = 2.0 ** round(math.log2(factor))
    new = graphs.copy_layer(layer, use_bias=True)
    new.build(layer.input.shape)
    kernel = kernel * np.asarray(gain) / factor
    getattr(new, str(rule.kernel)).assign(rule.unflatten(kernel, variable.shape))
    new.bias.assign(bias)
    return new, factor
