"""Replaying a graph: on symbolic tensors, which builds a model, or on values."""

import collections
import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq.graph import internals
from kerasq.graph.node import Graph, Node, Source, between, calls, places


def rewrite(graph: Graph, call: Callable[..., Any]) -> keras.Model:
    """Builds a model by replaying `graph`, calling `call(node, *args, **kwargs)` for each node.

    `args` and `kwargs` are the node's own, with tensors of the new model in place of the old.
    The inputs are new and keep their names, shapes and types.
    """
    mapped: dict[int, Any] = {}  # by id of a tensor of the graph

    def move(x: Any) -> Any:
        return mapped[id(x)] if isinstance(x, keras.KerasTensor) else x

    for x in keras.tree.flatten(graph.model.inputs):
        mapped[id(x)] = keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
    inputs = keras.tree.map_structure(move, graph.model.input)
    for node in graph.nodes:
        compute(node, mapped, call)
    outputs = keras.tree.map_structure(move, graph.model.output)
    return keras.Model(inputs, outputs, name=graph.model.name)


def transform(
    graph: Graph,
    call: Callable[..., Any],
    source: Callable[[Node], Source] = operator.attrgetter("source"),
) -> Graph:
    """The graph of what `call(node, *args, **kwargs)` makes of each node, as in `rewrite`.

    Every pass goes through it, so that none can forget what `Node.source` says.

    Args:
        graph: the graph; it is not changed.
        call: calls new layers on the arguments that it gets, and returns the last one's output.
        source: the record that the new calls get, but for whose weights they have.
    """
    nodes: list[Node] = []
    first: dict[str, list[str]] = {}  # by `weights_of` of an old call, the layers of its first one

    def record(node: Node, *args: Any, **kwargs: Any) -> Any:
        output = call(node, *args, **kwargs)
        made = between((args, kwargs), output)
        names = shared = [new.layer.name for new in made]
        # What a layer without weights becomes may have constant ones, such as Rescaling: nothing
        # is trained there, so each call has its own.
        if names and getattr(node.layer, "weights", None):
            shared = first.setdefault(node.source.weights_of, names)
        # Such as a BatchNormalization that is folded in one place and not in another.
        if len(shared) != len(names):
            shared = names
        nodes.extend(
            dataclasses.replace(new, source=dataclasses.replace(source(node), weights_of=name))
            for new, name in zip(made, shared, strict=True)
        )
        return output

    model = rewrite(graph, record)
    # Which call of a layer comes first holds its weights, and saved weights go by that: so the
    # order is that of the new model; of calls that do not read each other, that of the graph.
    place = places(model)
    # What two calls read, such as a cast of labels, was made for the first of them.
    distinct: dict[int, Node] = {}
    for node in nodes:
        distinct.setdefault(id(node.outputs[0]), node)
    # Of several outputs of a call, some may be read by nobody.
    needed = [node for key, node in distinct.items() if key in place]
    return Graph(model, sorted(needed, key=lambda node: place[id(node.outputs[0])]))


def is_symbolic() -> bool:
    """Whether Keras only finds out what shapes a call returns: it computes nothing then."""
    # The one sign of it is the name of the graph that Keras 3 (3.10 to 3.15) traces the call in.
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    return getattr(graph, "name", "").startswith("scratch_graph")


def infer(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
    """What a layer computes in inference; some, such as RandomFlip, train by default."""
    if internals.takes_training(layer):
        kwargs = {**kwargs, "training": False}
    return layer(*args, **kwargs)


def run(
    model: keras.Model,
    inputs: Any,
    call: Callable[..., Any],
    order: Callable[[keras.Model], list[Node]] = calls,
) -> list[Any]:
    """Runs a quantized model on `inputs`, computing every call by `call(node, *args, **kwargs)`.

    Args:
        model: a Functional model, as `quantize_model` makes it.
        inputs: a structure of tensors like `model.input`.
        call: gets the call, and its arguments with values in place of symbolic tensors.
        order: the calls of the model, in the order in which they run.

    Returns:
        The outputs, in the order of `model.outputs`.
    """
    symbols, outputs = keras.tree.flatten(model.inputs), keras.tree.flatten(model.outputs)
    values = {id(x): y for x, y in zip(symbols, keras.tree.flatten(inputs), strict=True)}
    steps = [(node, [*map(id, node.inputs)]) for node in order(model)]
    readers = collections.Counter(x for _, read in steps for x in read)
    readers.update(map(id, outputs))
    for node, read in steps:
        compute(node, values, call)
        # Where the values are numbers, they must not all be in memory until the end.
        readers.subtract(read)
        for x in {*read}:
            if not readers[x]:
                del values[x]
    return [values[id(y)] for y in outputs]


def compute(node: Node, values: dict[int, Any], call: Callable[..., Any]) -> None:
    """Adds what `call(node, *args, **kwargs)` returns to `values`, which holds tensors by id."""
    args, kwargs = keras.tree.map_structure(
        lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x,
        (node.args, node.kwargs),
    )
    outputs = keras.tree.flatten(call(node, *args, **kwargs))
    values.update({id(x): y for x, y in zip(node.outputs, outputs, strict=True)})
