"""Layers and operations that let positive factors of channels through: f(s x) = s f(x)."""

from typing import Any

import keras
import tensorflow as tf

from kerasq import graph as graphs

L = keras.layers
# Global poolings and those of 3 dimensions, too. Adaptive ones are of Keras 3.13 on.
POOLINGS = tuple(
    getattr(L, name) for name in dir(L) if "Pooling" in name and name.endswith(("1D", "2D", "3D"))
)
PADDINGS = (L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D, L.Resizing, L.CenterCrop)
RESHAPES = (L.Flatten, L.Reshape, "Reshape", "Squeeze", "ExpandDims")
MOVES = (
    *(L.Cropping1D, L.Cropping2D, L.Cropping3D, L.UpSampling1D, L.UpSampling2D, L.UpSampling3D),
    L.RepeatVector,
)
ACTIVATIONS = (L.ReLU, L.LeakyReLU, L.PReLU, L.Activation, "Relu", "Relu6", "LeakyRelu", "ReLU")
REDUCTIONS = ("Mean", "Max", "Amax", "Min", "Amin")


def ceiling(layer: Any) -> tuple[bool, float | None]:
    """Whether the activation of a layer is positively homogeneous, and its limit (None: none).

    That is `f(s x) = s f(x)` for s > 0, below the limit. A layer without an activation is.
    """
    own = kind(layer)
    if own in (L.LeakyReLU, L.PReLU, "Relu", "LeakyRelu"):
        return True, None
    if own == "Relu6":
        return True, 6.0
    if own in (L.ReLU, "ReLU"):
        is_known = not layer.threshold and not (layer.negative_slope and layer.max_value)
        return is_known and layer.max_value != 0.0, layer.max_value
    function = getattr(layer, "activation", None)
    if isinstance(function, keras.Layer):
        return ceiling(function)
    return next((found for known, found in _HOMOGENEOUS if function is known), (False, None))


def kind(layer: Any) -> Any:
    """The class of a layer; of an operation its name, since the classes are private to Keras."""
    return type(layer) if isinstance(layer, keras.Layer) else type(layer).__name__


# By identity: a user's function may have any name.
_HOMOGENEOUS: tuple[tuple[Any, tuple[bool, float | None]], ...] = (
    *(
        (function, (True, None))
        for function in (
            None,
            keras.activations.linear,
            keras.activations.relu,
            keras.activations.leaky_relu,
            tf.nn.relu,
            tf.nn.leaky_relu,
        )
    ),
    (keras.activations.relu6, (True, 6.0)),
    (tf.nn.relu6, (True, 6.0)),
)


def reduces_places(node: graphs.Node) -> bool:
    """Whether an operation along axes is along none of channels."""
    axes, rank = node.layer.axis, len(node.inputs[0].shape)
    return axes is not None and all(i % rank != rank - 1 for i in keras.tree.flatten(axes))


def is_activation(node: graphs.Node) -> bool:
    """Whether a call is that of an activation alone."""
    return kind(node.layer) in ACTIVATIONS
