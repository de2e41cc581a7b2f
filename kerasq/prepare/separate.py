"""One operation a layer: activations and sums of many inputs become layers of their own."""

from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import registry


def separate(
    model: keras.Model, keep: frozenset[str] = frozenset()
) -> tuple[keras.Model, dict[str, str]]:
    """Returns an equal model in which no layer stands for two integer kernels.

    - A layer with a kernel and an activation becomes two: "<name>" and its ReLU, "<name>_relu"
      (quantization merges them again), or "<name>_linear" and the activation, which keeps the
      name, so that outputs of the model keep theirs.
    - `GlobalAveragePooling2D` becomes `AveragePooling2D` of the whole image, "<name>_pool", and
      `Flatten`, "<name>". LiteRT's kernels for MEAN differ among themselves in up to 12 % of the
      values (the reference kernel rounds small sums twice); those for AVERAGE_POOL_2D are equal.
      An image of one pixel is its own average: only `Flatten` is left, since XNNPACK leaves a
      pool of one pixel to the interpreter, between two partitions.
    - `Add` of n inputs becomes n - 1 sums of two: "<name>_1", "<name>_2", ..., "<name>".

    Where a layer has such a name already, the new one gets a number behind it.

    Args:
        model: a built Sequential or Functional model; it is not changed.
        keep: names of the layers that stay as they are.

    Returns:
        The new model, and by name of each of its layers the name of the layer it comes from.
    """
    graph = graphs.read(model)
    owners: dict[str, str] = {}

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        before = {id(x) for x in graphs.symbolic((args, kwargs))}
        output = replace(node, *args, **kwargs)
        for layer in graphs.between(before, output):
            owners[layer.name] = node.layer.name
        return output

    def replace(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        layer = node.layer
        if layer.name in keep:
            return graphs.copy_call(layer, *args, **kwargs)
        rule = registry.find(layer)
        activation = registry.activation_name(layer)
        if rule is not None and rule.kernel is not None and activation != "linear":
            names = [graph.free_name(f"{layer.name}_linear"), layer.name]
            if activation.startswith("relu"):
                names = [layer.name, graph.free_name(f"{layer.name}_{activation}")]
            changes = {"activation": "linear", "name": names[0]}
            y = graphs.copy_call(layer, *args, changes=changes, **kwargs)
            return keras.layers.Activation(activation, name=names[1], dtype="float32")(y)
        if isinstance(layer, keras.layers.Add) and len(args[0]) > 2:
            total, *rest, last = args[0]
            for i, term in enumerate(rest, start=1):
                name = graph.free_name(f"{layer.name}_{i}")
                total = keras.layers.Add(name=name, dtype="float32")([total, term])
            return graphs.copy_call(layer, [total, last], **kwargs)
        if isinstance(layer, keras.layers.GlobalAveragePooling2D):
            return _pool_whole_image(graph, layer, args[0])
        return graphs.copy_call(layer, *args, **kwargs)

    return graphs.rewrite(graph, call), owners


def _pool_whole_image(
    graph: graphs.Graph, layer: keras.layers.GlobalAveragePooling2D, x: keras.KerasTensor
) -> keras.KerasTensor:
    height, width = x.shape[1:3]
    if height is None or width is None:
        raise ValueError(
            "The image size must be known, because the exported model has fixed shapes. "
            f"Received: {layer.name!r} (GlobalAveragePooling2D) on an input of shape {x.shape}. "
            "Build the model with a fixed `keras.Input(shape=...)`."
        )
    if height * width == 1:
        if layer.keepdims:
            return keras.layers.Identity(name=layer.name, dtype="float32")(x)
        return keras.layers.Flatten(name=layer.name, dtype="float32")(x)
    name = layer.name if layer.keepdims else graph.free_name(f"{layer.name}_pool")
    pooled = keras.layers.AveragePooling2D((height, width), name=name, dtype="float32")(x)
    if layer.keepdims:
        return pooled
    return keras.layers.Flatten(name=layer.name, dtype="float32")(pooled)
