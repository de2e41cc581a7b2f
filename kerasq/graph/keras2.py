"""Functional graphs of Keras 2 (`tf_keras`), replayed in Keras 3."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def is_functional(model: Any) -> bool:
    """Whether a model of Keras 2 has a graph: a built Functional or Sequential one."""
    # Its classes do not tell: a Sequential has a graph only once it is built.
    return getattr(model, "_is_graph_network", False)


def rebuild(model: Any, call: Callable[[Any, tuple, dict], Any]) -> keras.Model:
    """A model of Keras 3 made of `call(layer, args, kwargs)` for each call in one of Keras 2.

    Args:
        model: a model of `tf_keras` that has a graph.
        call: gets a layer of `model`, and the arguments of the call with tensors of Keras 3.
    """
    values = {
        id(x): keras.Input(batch_shape=tuple(x.shape), dtype=x.dtype.name, name=x.node.layer.name)
        for x in model.inputs
    }
    inputs = tf.nest.map_structure(lambda x: values[id(x)], model.input)
    # By Keras's lists, not from the outputs back: a network can be deeper than Python's stack.
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in (node for node in nodes if not node.is_input):
            args, kwargs = tf.nest.map_structure(
                lambda x: values.get(id(x), x), (node.call_args, node.call_kwargs)
            )
            outputs = tf.nest.flatten(call(node.layer, args, kwargs))
            old = tf.nest.flatten(node.outputs)
            values.update({id(x): y for x, y in zip(old, outputs, strict=True)})
    outputs = tf.nest.map_structure(lambda x: values[id(x)], model.output)
    return keras.Model(inputs, outputs, name=model.name)
