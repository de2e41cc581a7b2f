"""LSTMs that LiteRT has one operator for, as layers of their own."""

import collections
from typing import Any

import keras

from kerasq import graph as graphs
from kerasq.layers import SequenceLSTM, Take
from kerasq.targets import Target

L = keras.layers
MODES = ("unrolled", "fused")
OPERATOR = "UNIDIRECTIONAL_SEQUENCE_LSTM"


def fuse(
    graph: graphs.Graph, floats: frozenset[str], schemes: dict[str, str], target: Target
) -> graphs.Graph:
    """The graph with a `SequenceLSTM` for each LSTM that fits, and a Take of its last step.

    It fits where it is at w8a8, called once, and all that `_fits` asks.

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
            return _fused(graph, layer, args[0])
        return graphs.copy_call(layer, *args, **kwargs)

    return graphs.transform(graph, call)


def _fits(node: graphs.Node) -> bool:
    """Whether a call is of an LSTM from zeros on, with tanh and sigmoid, that returns no states."""
    layer = node.layer
    return (
        type(layer) is L.LSTM
        and len(node.inputs) == 1
        and not (layer.go_backwards or layer.return_state or layer.stateful)
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
    )


def _fused(graph: graphs.Graph, layer: keras.layers.LSTM, x: Any) -> Any:
    """The layer, called "<name>_steps" where it returns the last step alone."""
    name = layer.name if layer.return_sequences else graph.free_name(f"{layer.name}_steps", set())
    # As in parts of layers, activity regularizers and dropout are left out.
    own = {"return_sequences": True, "dropout": 0.0, "recurrent_dropout": 0.0, "unroll": False}
    config = layer.get_config() | own
    config |= {"name": name, "dtype": "float32", "activity_regularizer": None}
    made = SequenceLSTM.from_config(config)
    y = made(x)
    made.set_weights(layer.get_weights())
    if layer.return_sequences:
        return y
    return Take(x.shape[1] - 1, axis=1, name=layer.name, dtype="float32")(y)
