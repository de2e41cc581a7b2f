"""Functional graphs of Keras 2 (`tf_keras`), replayed in Keras 3."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq.graph import tracing
from kerasq.graph.node import between, distinct_name


def is_functional(model: Any) -> bool:
    """Whether a model of Keras 2 has a graph: a built Functional or Sequential one."""
    # Its classes do not tell: a Sequential has a graph only once it is built.
    return getattr(model, "_is_graph_network", False)


def name_of(layer: Any) -> str:
    """The name of a layer of Keras 2, as Keras 3 allows it: without slashes."""
    return layer.name.replace("/", "_")


def rebuild(model: Any, call: Callable[[Any, tuple, dict], Any]) -> keras.Model:
    """A model of Keras 3 made of `call(layer, args, kwargs)` for each call in one of Keras 2.

    Functions of TensorFlow become the operations of Keras 3 that compute the same; or a Lambda.

    Args:
        model: a model of `tf_keras` that has a graph.
        call: gets a layer of `model`, and the arguments of the call with tensors of Keras 3.
    """
    values: dict[int, Any] = {
        id(x): keras.Input(batch_shape=tuple(x.shape), dtype=x.dtype.name, name=x.node.layer.name)
        for x in model.inputs
    }
    inputs = tf.nest.map_structure(lambda x: values[id(x)], model.input)
    functions = _Functions({name_of(x) for x in model.layers if not _is_function(x)})
    # By Keras's lists, not from the outputs back: a network can be deeper than Python's stack.
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in (node for node in nodes if not node.is_input):
            arguments = tf.nest.map_structure(
                lambda x: values.get(id(x), x), (node.call_args, node.call_kwargs)
            )
            old = tf.nest.flatten(node.outputs)
            if _is_function(node.layer):
                outputs = functions.call(_Call(node.layer, arguments), old)
            else:
                args, kwargs = tf.nest.map_structure(functions.tensor, arguments)
                outputs = tf.nest.flatten(call(node.layer, args, kwargs))
            values.update({id(x): y for x, y in zip(old, outputs, strict=True)})
    outputs = tf.nest.map_structure(lambda x: functions.tensor(values[id(x)]), model.output)
    return keras.Model(inputs, outputs, name=model.name)


def _is_function(layer: Any) -> bool:
    """Whether a layer of Keras 2 stands for a function of TensorFlow."""
    return type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda")


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call of a TensorFlow function.

    Attributes:
        layer: what stands for the function in Keras 2.
        arguments: by place and by name, with tensors of Keras 3, or `_Later`.
    """

    layer: Any
    arguments: tuple[tuple, dict]

    def symbols(self) -> dict[int, keras.KerasTensor]:
        """The tensors of Keras 3 that it is computed from, by id."""
        found: dict[int, keras.KerasTensor] = {}
        for x in tf.nest.flatten(self.arguments):
            if isinstance(x, _Later):
                found |= x.call.symbols()
            elif isinstance(x, keras.KerasTensor):
                found[id(x)] = x
        return found

    def run(self, values: dict[int, Any]) -> list[Any]:
        """What it returns, given values of those tensors."""

        def value(x: Any) -> Any:
            return x.call.run(values)[x.place] if isinstance(x, _Later) else values.get(id(x), x)

        args, kwargs = tf.nest.map_structure(value, self.arguments)
        return tf.nest.flatten(self.layer.call(*args, **kwargs))


@dataclasses.dataclass(frozen=True, eq=False)
class _Later:
    """An output of a TensorFlow function that becomes part of what reads it, such as a shape.

    Attributes:
        call: the call.
        place: of the output among those of the call.
        old: all of them in Keras 2.
    """

    call: _Call
    place: int
    old: list[Any]


class _Functions:
    """Calls of TensorFlow functions on tensors of Keras 3.

    Args:
        names: those of the layers in the graph.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def call(self, call: _Call, old: list[Any]) -> list[Any]:
        """What a call returns: tensors of Keras 3, or `_Later`; `old` are those of Keras 2."""
        later = [_Later(call, i, old) for i in range(len(old))]
        # Keras 3 has no tensors that tell the number of samples.
        is_of_shapes = call.layer.symbol in _SHAPES or not any(
            isinstance(x, keras.KerasTensor) for x in tf.nest.flatten(call.arguments)
        )
        if is_of_shapes:
            return later
        # A Lambda of Keras 3 says of whatever it returns that it is a float.
        is_float = all(x.dtype.is_floating for x in old)
        return self._replayed(call) or (self._lambda(call, old) if is_float else later)

    def tensor(self, x: Any) -> Any:
        """What a layer can be called on."""
        if not isinstance(x, _Later):
            return x
        return (self._replayed(x.call) or self._lambda(x.call, x.old))[x.place]

    def _replayed(self, call: _Call) -> list[keras.KerasTensor]:
        """What a call returns, by operations of Keras; nothing where there are none."""
        symbols = call.symbols()
        given = [*symbols.values()]
        try:
            outputs = tracing.replay(
                lambda *x: call.run(dict(zip(symbols, x, strict=True))), (tuple(given), {}), None
            )
        except Exception:  # Of TensorFlow, or of operations of Keras: of any class.
            return []
        if not all(isinstance(x, keras.KerasTensor) for x in outputs):
            return []
        self._rename(call, [x.layer for x in between(given, outputs)])
        return outputs

    def _rename(self, call: _Call, made: list[Any]) -> None:
        """Calls the last of what a call became by its name, the others by theirs behind that."""
        # Names that Keras makes up, such as "add", may be those of layers of the model.
        name = name_of(call.layer).replace(".", "_")
        for layer in made[::-1]:
            layer.name = distinct_name(name, self._names)
            self._names.add(layer.name)
            name = f"{made[-1].name}_{type(layer).__name__.lower()}"

    def _lambda(self, call: _Call, old: list[Any]) -> list[keras.KerasTensor]:
        """What a call returns, by a layer of Keras that calls TensorFlow."""
        symbols = call.symbols()
        given = [*symbols.values()]

        def function(x: Any) -> Any:
            values = call.run(dict(zip(symbols, tf.nest.flatten(x), strict=True)))
            return values if len(values) > 1 else values[0]

        shapes = [tuple(x.shape) for x in old]
        shape = shapes if len(shapes) > 1 else shapes[0]
        # Where Keras runs the function to know the shape it takes integers for floats.
        layer = keras.layers.Lambda(function, output_shape=lambda _: shape)
        self._rename(call, [layer])
        return tf.nest.flatten(layer(given if len(given) > 1 else given[0]))


# Functions of TensorFlow that return sizes.
_SHAPES = (
    "compat.v1.shape",
    "compat.v1.shape_n",
    "compat.v1.size",
    "compat.v1.rank",
    "shape",
    "size",
)
