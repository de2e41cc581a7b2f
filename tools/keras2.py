"""Models of Keras 3 in Keras 2, for peers that know no other."""

import inspect
from typing import Any

from kerasq import graph


def in_keras2(model: Any) -> Any:
    """A Functional model of Keras 3 as one of tf_keras, which is what tfmot takes."""
    import tf_keras

    made: list[tuple[Any, Any]] = []

    def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        layer = node.layer
        known = getattr(tf_keras.layers, type(layer).__name__)
        takes = {"name", *inspect.signature(known.__init__).parameters}
        # Initializers have other arguments there; weights are copied anyway.
        config = {
            key: value
            for key, value in layer.get_config().items()
            if key in takes and not key.endswith("_initializer")
        }
        made.append((layer, known(**config)))
        return made[-1][1](*args)

    inputs = [tf_keras.Input(x.shape[1:]) for x in model.inputs]
    copy = tf_keras.Model(inputs, graph.run(model, inputs, call))
    for layer, twin in made:
        twin.set_weights(layer.get_weights())
    return copy
