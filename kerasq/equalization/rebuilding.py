"""A float model of a graph whose layers were changed: what was one layer before is one again."""

from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import unsupported
from kerasq.quantize import float_model, of_class


def read(model: Any) -> tuple[Any, graphs.Graph]:
    """The model in Keras 3, and a copy of it as a graph; a ValueError where it is quantized.

    Models and layers of the user's own are opened, as for `quantize_model`, but none is parted
    from its activation: the name of the layer would go to the activation.
    """
    model = float_model(model)
    return model, graphs.read(model, _is_closed)


def _is_closed(layer: keras.Layer) -> bool:
    return unsupported.is_closed(layer) or graphs.own_activation(layer) is not None


class Copies:
    """Calls of copies of a graph's layers: all calls of one layer of one copy."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def call(
        self,
        node: graphs.Node,
        *args: Any,
        changes: dict | None = None,
        weights: list | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the copy of a layer; the first call makes it, with `changes` and `weights`."""
        key = node.source.weights_of
        if key in self._made:
            return self._made[key](*args, **kwargs)
        layer = self._made[key] = graphs.copy_layer(node.layer, **(changes or {}))
        with_policy(layer, node)
        output = layer(*args, **kwargs)
        if weights is None:
            graphs.set_weights(layer, node.layer)
        else:
            layer.set_weights(weights)
        return output


def with_policy(layer: Any, node: graphs.Node) -> Any:
    """A layer that computes in the precision that the user's layer of a call has."""
    if isinstance(layer, keras.Layer) and node.source.training_dtype != "float32":
        layer.dtype_policy = f"mixed_{node.source.training_dtype}"
    return layer


def rebuild(model: keras.Model, graph: graphs.Graph, call: Any) -> keras.Model:
    """The model of `graph` by `graphs.rewrite`, of the class of `model` as far as that goes."""
    return of_class(model, graphs.rewrite(graph, call))
