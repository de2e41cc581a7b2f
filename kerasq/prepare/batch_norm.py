"""Folding of BatchNormalization into the layer before it: a pass from graph to graph."""

import dataclasses
import math
from typing import Any

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
    behind = {id(node): after.source.weights_of for node, after in found}
    for node in graph.nodes:
        norms.setdefault(node.source.weights_of, set()).add(behind.get(id(node)))
    return [pair for pair in found if len(norms[pair[0].source.weights_of]) == 1]


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


def fold(graph: graphs.Graph, keep: frozenset[str] = frozenset()) -> graphs.Graph:
    """Returns an equal graph in which each BatchNormalization is part of the kernel before it.

    The layer before it gets a bias, and the kernel that counts in inference. `Source.gain` of its
    calls is the unit to train that kernel in: see `_unit`.

    Args:
        graph: the graph; it is not changed.
        keep: names of the layers that stay as they are.
    """
    norms = {id(node): norm for node, norm in pairs(graph) if node.layer.name not in keep}
    folded = {id(norm) for norm in norms.values()}

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        if id(node) in folded:
            return args[0]
        if id(node) not in norms:
            return graphs.copy_call(node.layer, *args, **kwargs)
        return _folded(node.layer, norms[id(node)].layer)(*args, **kwargs)

    def source(node: graphs.Node) -> graphs.Source:
        if id(node) not in norms:
            return node.source
        return dataclasses.replace(node.source, gain=_unit(node.layer, norms[id(node)].layer))

    return graphs.transform(graph, call, source)


def _folded(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> keras.Layer:
    """A layer with bias that equals `layer` and `norm`."""
    rule = registry.rule(layer)
    gain, bias = gain_and_bias(norm, layer.bias.value if layer.use_bias else None)
    variable = getattr(layer, str(rule.kernel))
    new = graphs.copy_layer(layer, use_bias=True)
    new.build(layer.input.shape)
    kernel = rule.flatten(variable.value) * gain
    getattr(new, str(rule.kernel)).assign(rule.unflatten(kernel, variable.shape))
    new.bias.assign(bias)
    return new


def _unit(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> float:
    """The unit r that the folded kernel is trained in: the variable is the kernel over r.

    Without BatchNormalization a kernel is no longer scale-invariant: behind pixels of 0..255, a
    learning rate that suited the float model makes it diverge. So the variable is kept in units in
    which the kernel's inputs have variance 1, estimated from the variances that the
    BatchNormalization knows:

        1 / r = median over channels c of sqrt(variance_c + epsilon) / norm2(kernel_c)

    rounded to a power of two, so that weights that are powers of two stay such, and dividing by r
    rounds nothing.
    """
    rule = registry.rule(layer)
    kernel = keras.ops.convert_to_numpy(rule.flatten(getattr(layer, str(rule.kernel)).value))
    norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    deviation = np.sqrt(keras.ops.convert_to_numpy(norm.moving_variance.value) + norm.epsilon)
    used = norms > 0
    unit = float(np.median(norms[used] / deviation[used])) if used.any() else 1.0
    return 2.0 ** round(math.log2(unit))
