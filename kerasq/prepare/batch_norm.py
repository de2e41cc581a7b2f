"""BatchNormalization: what it becomes, in the kernel before it or alone. Two passes, and parts."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import fits, registry
from kerasq import graph as graphs
from kerasq.layers import Scale
from kerasq.prepare.parts import Parts, between_permutes
from kerasq.support.shared import shared

L = keras.layers


def along_last(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """One along another axis than the last: "<name>_last", between two Permute."""

    def normalized(y: Any) -> Any:
        last = graphs.copy_layer(layer, axis=-1, name=parts.name(name, "last"))
        return parts.call(last, y, layer.get_weights())

    return between_permutes(parts, fits.axes(layer.axis, x), name, x, normalized, moved="moved")


def foldable(graph: graphs.Graph, keep: frozenset[str] = frozenset()) -> dict[int, graphs.Node]:
    """The calls of a BatchNormalization that can be folded, by id of the call to fold them into.

    That is a call of a layer with a kernel, which nothing else reads. All calls of a layer that is
    called more than once must have the same BatchNormalization behind them.

    Args:
        graph: a graph, decomposed or not.
        keep: names of layers that are not folded, nor is anything into them.
    """
    found = {id(node): _norm_behind(graph, node) for node in graph.nodes}
    # By layer, what is behind its calls: they share a kernel, into which one can be folded.
    behind: dict[str, set[str | None]] = {}
    for node in graph.nodes:
        norm = found[id(node)]
        name = None if norm is None else norm.source.weights_of
        behind.setdefault(node.source.weights_of, set()).add(name)
    return {
        id(node): norm
        for node in graph.nodes
        if (norm := found[id(node)]) is not None
        and len(behind[node.source.weights_of]) == 1
        and not keep & {node.layer.name, norm.layer.name}
    }


def _norm_behind(graph: graphs.Graph, node: graphs.Node) -> graphs.Node | None:
    """The BatchNormalization that alone reads what a call of a layer with a kernel returns."""
    rule, reader = registry.find(node.layer), graph.only_consumer(node)
    if rule is None or rule.kernel is None or reader is None:
        return None
    if not isinstance(reader.layer, keras.layers.BatchNormalization):
        return None
    is_linear = registry.activation_name(node.layer) == "linear"
    # Gains of another axis than the kernel's channels are no gains of its columns.
    is_per_channel = reader.layer.axis in (-1, len(node.output.shape) - 1)
    # A user's layer without `use_bias` cannot be given the bias that folding needs.
    return reader if is_linear and is_per_channel and hasattr(node.layer, "use_bias") else None


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
    statistics = norm.moving_mean.value, norm.moving_variance.value
    gamma = norm.gamma.value if norm.scale else None
    beta = norm.beta.value if norm.center else None
    return _gain_and_bias(*statistics, gamma, beta, bias, norm.epsilon)


@shared
def _gain_and_bias(
    mean: tf.Tensor,
    variance: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    bias: tf.Tensor | None,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    gain = tf.math.rsqrt(variance + epsilon)
    if gamma is not None:
        gain = gain * gamma
    shift = (-mean if bias is None else bias - mean) * gain
    return gain, shift if beta is None else shift + beta


def scale(graph: graphs.Graph, keep: frozenset[str] = frozenset()) -> graphs.Graph:
    """Returns an equal graph in which a BatchNormalization that cannot be folded is a `Scale`.

    Args:
        graph: a decomposed graph; it is not changed.
        keep: names of the layers that stay as they are.
    """
    # One behind a layer that stays float stays with it, though it will not be folded.
    behind = {id(norm) for norm in foldable(graph).values()}
    alone = {
        id(node)
        for node in graph.nodes
        if isinstance(node.layer, keras.layers.BatchNormalization)
        and id(node) not in behind
        and node.layer.name not in keep
    }

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        layer = node.layer
        if id(node) not in alone:
            return graphs.copy_call(layer, *args, **kwargs)
        new = Scale(name=layer.name, trainable=layer.trainable, dtype="float32")
        output = new(args[0])
        new.assign(*gain_and_bias(layer, None))
        return output

    return graphs.transform(graph, call) if alone else graph


def fold(graph: graphs.Graph, keep: frozenset[str] = frozenset()) -> graphs.Graph:
    """Returns an equal graph in which each BatchNormalization is part of the kernel before it.

    The layer before it gets a bias, and the kernel that counts in inference. `Source.gain` of its
    calls has the units to train that kernel in: see `_units`. Layers with a constraint or a
    regularizer keep their BatchNormalization, with frozen statistics, which is printed: folded,
    training would apply them to other weights than they are meant for.

    Args:
        graph: a decomposed graph; it is not changed.
        keep: names of the layers that stay as they are.
    """
    norms = foldable(graph, keep)
    kept = {id(norms.pop(key)) for key in _ruled(graph, norms)}
    folded = {id(norm) for norm in norms.values()}

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        if id(node) in folded:
            return args[0]
        if id(node) in kept:  # Its statistics stay, as those do that are folded.
            return graphs.copy_call(node.layer, *args, **kwargs | {"training": False})
        if id(node) not in norms:
            return graphs.copy_call(node.layer, *args, **kwargs)
        return _folded(node.layer, norms[id(node)].layer)(*args, **kwargs)

    def source(node: graphs.Node) -> graphs.Source:
        norm = norms.get(id(node))
        gain = node.source.gain if norm is None else _units(norm.layer)
        return dataclasses.replace(node.source, gain=gain)

    return graphs.transform(graph, call, source) if norms or kept else graph


def _ruled(graph: graphs.Graph, norms: dict[int, graphs.Node]) -> set[int]:
    """The keys of those of `norms` that are not to be folded for constraints or regularizers."""
    calls = [node for node in graph.nodes if id(node) in norms]
    found = [x for x in calls if _has_rules(x.layer) or _has_rules(norms[id(x)].layer)]
    if found:
        names = [norms[id(node)].layer.name for node in found]
        print(f"Not folded, for constraints or regularizers of what would be folded: {names}.")
    return {*map(id, found)}


def _has_rules(layer: keras.Layer) -> bool:
    """Whether a layer has constraints or regularizers."""
    config = graphs.configuration(layer)
    return any(config[key] for key in config if key.endswith(("_constraint", "_regularizer")))


def _folded(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> keras.Layer:
    """A layer with bias that equals `layer` and `norm`."""
    rule = registry.rule(layer)
    gain, bias = gain_and_bias(norm, layer.bias.value if layer.use_bias else None)
    variable = getattr(layer, str(rule.kernel))
    whole = {"constant_gain": False} if isinstance(layer, Scale) else {}
    new = graphs.copy_layer(layer, use_bias=True, **whole)
    new.build(layer.input.shape)  # Its weights must exist before it is called with them.
    kernel = rule.flatten(variable.value) * gain
    getattr(new, str(rule.kernel)).assign(rule.unflatten(kernel, variable.shape))
    new.bias.assign(bias)
    return new


def _units(norm: keras.layers.BatchNormalization) -> tuple[float, ...]:
    """The units r that the folded kernel is trained in, one a channel: the variable is kernel / r.

    Without BatchNormalization a kernel is no longer scale-invariant: behind pixels of 0..255, a
    learning rate that suited the float model makes it diverge. In units of `gamma / sigma` the
    variable is what it was before folding, and steps are those of a BatchNormalization whose
    statistics are frozen:

        r_c = abs(gamma_c) / sqrt(variance_c + epsilon)

    rounded to a power of two, so that weights that are powers of two stay such, and dividing by r
    rounds nothing.
    """
    gain = np.abs(keras.ops.convert_to_numpy(gain_and_bias(norm, None)[0]))
    # A channel that is switched off has no unit.
    return tuple(float(2.0 ** round(math.log2(g))) if g > 0 else 1.0 for g in gain)


def has_statistics(norm: keras.layers.BatchNormalization | None) -> bool:
    """Whether there is a BatchNormalization, and its statistics are not those it was made with."""
    if norm is None:
        return False
    return bool(np.any(norm.moving_mean) or np.any(np.not_equal(norm.moving_variance, 1.0)))
