"""Reading and rewriting Keras functional graphs: the only module that knows how Keras holds one."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer.

    Attributes:
        layer: the layer; a copy that belongs to the graph.
        args: positional arguments of the call, tensors among them.
        kwargs: keyword arguments of the call.
        output: what the call returned.
    """

    layer: keras.Layer
    args: tuple
    kwargs: dict
    output: Any

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors among the arguments."""
        return symbolic((self.args, self.kwargs))


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A copy of a model's layers, weights included, with every call in topological order."""

    model: keras.Model
    nodes: list[Node]

    def consumers(self, tensor: keras.KerasTensor) -> list[Node]:
        """The calls that read `tensor`."""
        return [node for node in self.nodes if any(x is tensor for x in node.inputs)]

    def only_consumer(self, node: Node) -> Node | None:
        """The one call that reads what `node` returns, if there is no other use of it."""
        is_output = any(x is node.output for x in keras.tree.flatten(self.model.outputs))
        consumers = self.consumers(node.output)
        return consumers[0] if len(consumers) == 1 and not is_output else None

    def free_name(self, name: str, taken: Iterable[str] = ()) -> str:
        """`name`, with a number behind it if need be: no layer has it, nor is it `taken`."""
        taken = {*taken, *(layer.name for layer in self.model.layers)}
        candidates = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
        return next(candidate for candidate in candidates if candidate not in taken)


def read(model: keras.Model) -> Graph:
    """Copies `model`, which is left untouched, and lists the calls of the copy.

    Layers of mixed precision compute in float32 in the copy.

    Raises:
        ValueError: where `model` is not a built Keras 3 Sequential or Functional model.
    """
    functional = _functional(model)
    nodes = []

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        output = layer(*args, **kwargs)
        nodes.append(Node(layer, args, kwargs, output))
        return output

    copy = keras.models.clone_model(functional, call_function=call)
    copy.set_weights(functional.get_weights())
    for node in nodes:
        if is_mixed(node.layer):
            node.layer.dtype_policy = "float32"
    return Graph(copy, nodes)


def is_mixed(layer: Any) -> bool:
    """Whether a layer computes in 16 bits on float32 variables."""
    return isinstance(layer, keras.Layer) and layer.dtype_policy.name.startswith("mixed_")


def _functional(model: keras.Model) -> keras.Model:
    if not isinstance(model, keras.Model):
        hint = ""
        if type(model).__module__.startswith(("tf_keras", "tensorflow.python.keras")):
            hint = " This is a Keras 2 model: save it with `model.export` or rebuild it in Keras 3."
        raise ValueError(
            "`model` must be a Keras 3 model (`keras.Model`). "
            f"Received: {type(model).__module__}.{type(model).__name__}.{hint}"
        )
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                "`model` must be built, so that its weights and shapes are known. "
                f"Received: Sequential {model.name!r} without an input shape. "
                "Start it with `keras.Input(shape)` or call `model.build(input_shape)`."
            )
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not hasattr(model, "operations") or not model.built:
        raise ValueError(
            "`model` must be a Sequential or Functional model. "
            f"Received: subclassed model {type(model).__name__} {model.name!r}. "
            "Build the same layers with `keras.Model(inputs, outputs)`."
        )
    return model


def rewrite(graph: Graph, call: Callable[..., Any]) -> keras.Model:
    """Builds a model by replaying `graph`, calling `call(node, *args, **kwargs)` for each node.

    `args` and `kwargs` are the node's own, with tensors of the new model in place of the old.
    The inputs are new and keep their names, shapes and types.
    """
    mapped: dict[int, Any] = {}

    def move(x: Any) -> Any:
        return mapped[id(x)] if isinstance(x, keras.KerasTensor) else x

    for x in keras.tree.flatten(graph.model.inputs):
        mapped[id(x)] = keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
    inputs = keras.tree.map_structure(move, graph.model.input)
    for node in graph.nodes:
        args, kwargs = keras.tree.map_structure(move, (node.args, node.kwargs))
        mapped[id(node.output)] = call(node, *args, **kwargs)
    outputs = keras.tree.map_structure(move, graph.model.output)
    return keras.Model(inputs, outputs, name=graph.model.name)


def copy_layer(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """A new, unbuilt layer with the same configuration, `changes` applied."""
    return type(layer).from_config({**layer.get_config(), **changes})


def copy_built(layer: keras.Layer) -> keras.Layer:
    """A copy of a layer with one input, weights included, that belongs to no graph.

    A layer that was called leads to all tensors, layers and weights of the graph it was called in.
    """
    copy = copy_layer(layer)
    copy.build(layer.input.shape)
    copy.set_weights(layer.get_weights())
    return copy


def symbolic(arguments: Any) -> list[keras.KerasTensor]:
    """The tensors of a graph among the arguments of a call."""
    flat = keras.tree.flatten(arguments)
    return [x for x in flat if isinstance(x, keras.KerasTensor) and hasattr(x, "_keras_history")]


def origin(tensor: keras.KerasTensor) -> tuple[keras.Layer, list[keras.KerasTensor]]:
    """The layer that made `tensor`, and the inputs of that call."""
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return history.operation, list(node.input_tensors)


def between(inputs: set[int], outputs: Any) -> list[keras.Layer]:
    """The layers that lead from tensors, given by id, to `outputs`."""
    found = []
    for tensor in symbolic(outputs):
        if id(tensor) not in inputs:
            layer, sources = origin(tensor)
            found += [layer, *between(inputs, sources)]
    return found


def copy_call(layer: keras.Layer, *args: Any, changes: dict | None = None, **kwargs: Any) -> Any:
    """Calls a copy of `layer`, configuration changed by `changes`, that has the same weights."""
    copy = copy_layer(layer, **(changes or {}))
    output = copy(*args, **kwargs)
    copy.set_weights(layer.get_weights())
    return output


def run(model: keras.Model, inputs: Any, call: Callable[[keras.Layer, Any], Any]) -> list[Any]:
    """Runs a quantized model on `inputs`, computing every layer by `call(layer, x)`.

    Args:
        model: a Functional model whose layers are called once each, as `quantize_model` makes it.
        inputs: a structure of tensors like `model.input`.
        call: gets a layer and its input, a list where it has several.

    Returns:
        The outputs, in the order of `model.outputs`.
    """
    symbols = keras.tree.flatten(model.inputs)
    values = {id(x): y for x, y in zip(symbols, keras.tree.flatten(inputs), strict=True)}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            xs = [values[id(x)] for x in origin(layer.output)[1]]
            values[id(layer.output)] = call(layer, xs if len(xs) > 1 else xs[0])
    return [values[id(y)] for y in keras.tree.flatten(model.outputs)]
