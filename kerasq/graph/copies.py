"""Copies of layers, weights included."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasq.graph import internals
from kerasq.layers import ActivityRegularizer


def own_activation(layer: Any) -> Callable[..., Any] | None:
    """The activation of a layer, where it is none of Keras's: a user's, TensorFlow's, a layer."""
    function = getattr(layer, "activation", None)
    # By identity: a function of the user's may have the name of one that Keras has.
    name = getattr(function, "__name__", "")
    return None if getattr(keras.activations, name, None) is function else function


def copy_layer(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """A new, unbuilt layer, or operation, with the same configuration, `changes` applied.

    Regularizers and constraints of the user's own are the same objects. Initializers of the user's
    own are left out, as weights are copied.

    Raises:
        ValueError: where the configuration does not make the layer again.
    """
    if not isinstance(layer, keras.Layer):
        return internals.uncalled(layer, **changes)
    own = own_activation(layer)
    try:
        config = {**configuration(layer), **changes}
        if isinstance(layer, keras.layers.Lambda):  # Its configuration loses what it closes over.
            given = {key: config[key] for key in ("name", "trainable", "dtype")}
            options = {"output_shape": internals.output_shape(layer), "arguments": layer.arguments}
            return keras.layers.Lambda(layer.function, **options, **given)
        if own is not None and "activation" in config and "activation" not in changes:
            config["activation"] = copy_built(own) if isinstance(own, keras.Layer) else own
        if type(layer) in _HOLDERS:  # Of classes of the user's, which may have no names in files.
            key = _HOLDERS[type(layer)]
            return type(layer)(**config | {key: copy_layer(getattr(layer, key))})
        return type(layer).from_config(config)
    except (TypeError, NotImplementedError) as error:
        # Behind pages about the configuration that Keras tried.
        cause = " ".join(str(error).rpartition("Exception encountered: ")[2].split())
        raise ValueError(
            "A layer must be restorable from its configuration: its constructor must take what "
            "`get_config` returns, and pass `**kwargs` on; and classes and functions of your own "
            "in it must be decorated with `@keras.saving.register_keras_serializable()`. "
            f"Received: {layer.name!r} ({type(layer).__name__}): {cause:.200}"
        ) from error


# Layers that take another layer, under that name, and run it as it is.
_HOLDERS = {keras.layers.TimeDistributed: "layer", keras.layers.RNN: "cell"}
# What a layer may have of the user's own beside its activation, by ends of names.
_PARTS = ("_regularizer", "_constraint", "_initializer")


def configuration(layer: keras.Layer) -> dict[str, Any]:
    """What `get_config` returns, but for what is of the user's own: see `copy_layer`."""
    own = own_activation(layer)
    plain: dict[str, Any] = {} if own is None else {"activation": keras.activations.linear}
    if (held := _HOLDERS.get(type(layer))) is not None:  # Which is copied by itself.
        plain[held] = keras.layers.Identity()
    # A lambda has no configuration.
    with internals.replaced(layer, **plain), without_own_parts(layer) as parts:
        config = dict(layer.get_config())
    for name, part in parts.items():
        key = name.removeprefix("_")
        config.pop(key, None)
        if not key.endswith("_initializer"):
            config[key] = part
    config.setdefault("name", layer.name)  # Which Keras leaves out where it makes the rest up.
    # Keras 3.10 leaves it out, and with it a part of the output.
    if (padding := getattr(layer, "output_padding", None)) is not None:
        config.setdefault("output_padding", padding)
    return config


@contextlib.contextmanager
def without_own_parts(layer: keras.Layer) -> Iterator[dict[str, Any]]:
    """Takes the user's own regularizers, constraints and initializers off a layer, for a while."""
    # Recurrent layers have theirs in the cell, but for what is of their outputs.
    holders = {id(x): x for x in (layer, _holder(layer))}.values()
    with contextlib.ExitStack() as stack:
        parts: dict[str, Any] = {}
        for holder in holders:
            own = _own_parts(holder)
            stack.enter_context(internals.replaced(holder, **dict.fromkeys(own)))
            parts |= own
        yield parts


def add_parts(layer: keras.Layer, parts: dict[str, Any]) -> None:
    """Gives a layer that is not built the parts that `without_own_parts` found."""
    for name, part in parts.items():
        setattr(layer if name == "activity_regularizer" else _holder(layer), name, part)


def _holder(layer: keras.Layer) -> keras.Layer:
    return getattr(layer, "cell", layer)


def _own_parts(layer: Any) -> dict[str, Any]:
    """Regularizers, constraints and initializers of a layer of Keras that are none of Keras's."""
    is_known = internals.is_of_keras(type(layer), "layers") or isinstance(
        layer, ActivityRegularizer
    )
    if not is_known:
        return {}  # Whose constructor may want what its configuration has.
    return {
        name: x
        for name, x in vars(layer).items()
        if name.endswith(_PARTS) and x is not None and not internals.is_of_keras(type(x))
    }


def copy_built(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """A copy of a layer, weights included, `changes` applied, that belongs to no graph.

    A layer that was called leads to all tensors, layers and weights of the graph it was called in.
    """
    new = copy_layer(layer, **changes)
    if layer.weights:
        new.build_from_config(layer.get_build_config())
        set_weights(new, layer)
    return new


def copy_call(layer: keras.Layer, *args: Any, changes: dict | None = None, **kwargs: Any) -> Any:
    """Calls a copy of `layer`, configuration changed by `changes`, that has the same weights."""
    new = copy_layer(layer, **(changes or {}))
    output = new(*args, **kwargs)
    set_weights(new, layer)
    return output


def set_weights(layer: Any, source: Any) -> None:
    """Gives a built layer, or operation, the weights of another."""
    # Also of Keras 2. An operation has none.
    if isinstance(layer, keras.Layer) and hasattr(source, "get_weights"):
        values = source.get_weights()
        if isinstance(getattr(source, "activation", None), keras.Layer):
            values = values[: len(layer.weights)]  # Those of the activation come last.
        if len(layer.weights) < len(values):  # As of a user's own, whose layers its `build` makes.
            internals.build_inside(layer, [layer, source])
        layer.set_weights(values)
        if hasattr(layer, "finalize_state"):  # Normalization computes on what it derives.
            layer.finalize_state()
