"""LSTMs that a target has one operator for, as layers of their own."""

import collections
from typing import Any

import keras

from kerasq import graph as graphs
from kerasq.layers import SequenceLSTM, Take
from kerasq.prepare.recurrence import MERGES, input_dropout
from kerasq.targets import Target

L = keras.layers
MODES = ("auto", "unrolled", "fused")
OPERATOR = "UNIDIRECTIONAL_SEQUENCE_LSTM"


def fuse(
    graph: graphs.Graph, floats: frozenset[str], schemes: dict[str, str], target: Target
) -> graphs.Graph:
    """The graph with a `SequenceLSTM` for each LSTM that fits, and a Take of its last step.

    One that goes backwards reads the flipped sequence; a Bidirectional is two of them. It fits
    where it is at w8a8, called once, and all that `_fits` asks.

    Args:
        graph: what `kerasq.graph.read` returned; it is not changed.
        floats: names of layers that stay float.
        schemes: the scheme of each layer.
        target: what the model is to run on.

    Raises:
        ValueError: where the target has no such operator.
    """
    if not target.has(OPERATOR, 8):
        raise ValueError(
            "`recurrence` must be 'unrolled' on a target without a simulated LSTM. "
            f"Received: recurrence='fused', target={target.name!r}."
        )
    calls = collections.Counter(node.source.weights_of for node in graph.nodes)

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        layer = node.layer
        is_plain = layer.name not in floats and schemes[layer.name] == "w8a8"
        if is_plain and calls[node.source.weights_of] == 1 and _fits(node):
            make = _both_ways if isinstance(layer, L.Bidirectional) else _one_way
            return make(graph, layer, layer.name, args[0])
        return graphs.copy_call(layer, *args, **kwargs)

    return graphs.transform(graph, call)


def _fits(node: graphs.Node) -> bool:
    """Whether a call is of LSTMs from zeros on, with tanh and sigmoid, that return no states."""
    layer = node.layer
    is_both = type(layer) is L.Bidirectional
    loops = [layer.forward_layer, layer.backward_layer] if is_both else [layer]
    return len(node.inputs) == 1 and all(map(_is_known, loops))


def _is_known(layer: keras.Layer) -> bool:
    return (
        type(layer) is L.LSTM
        and not (layer.return_state or layer.stateful)
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
    )


def _one_way(graph: graphs.Graph, layer: keras.layers.LSTM, name: str, x: Any) -> Any:
    """The layer, called "<name>_steps" where it returns the last step alone."""
    steps = name if layer.return_sequences else graph.free_name(f"{name}_steps", set())
    if layer.dropout:
        x = input_dropout(layer.dropout, graph.free_name(f"{name}_dropout", set()), x)(x)
    own = {"return_sequences": True, "dropout": 0.0, "recurrent_dropout": 0.0, "unroll": False}
    config = graphs.configuration(layer) | own | {"go_backwards": False}
    config |= {"name": steps, "dtype": "float32"}
    made = SequenceLSTM.from_config(config)
    y = made(keras.ops.flip(x, axis=1) if layer.go_backwards else x)
    made.set_weights(layer.get_weights())
    if layer.return_sequences:
        return y
    return Take(x.shape[1] - 1, axis=1, name=name, dtype="float32")(y)


def _both_ways(graph: graphs.Graph, layer: keras.layers.Bidirectional, name: str, x: Any) -> Any:
    """An LSTM from either end, "<name>_forward" and "<name>_backward", and what merges them."""
    ends = []
    for way, loop in (("forward", layer.forward_layer), ("backward", layer.backward_layer)):
        y = _one_way(graph, loop, graph.free_name(f"{name}_{way}", set()), x)
        # Keras turns the backward one round, so that equal steps meet.
        is_turned = way == "backward" and loop.return_sequences
        ends.append(keras.ops.flip(y, axis=1) if is_turned else y)
    mode = layer.merge_mode
    return ends if mode is None else MERGES[mode](name=name, dtype="float32")(ends)
