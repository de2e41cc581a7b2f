"""Opening models and layers: the Functional model that computes what a call does."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasq.graph import internals, tracing
from kerasq.graph.copies import own_activation
from kerasq.graph.losses import keep_losses
from kerasq.graph.node import distinct_name, symbolic
from kerasq.layers import Stack


def check(model: Any) -> None:
    """Raises a ValueError unless `model` is a Keras 3 model that is built."""
    if not isinstance(model, keras.Model):
        hint = ""
        if type(model).__module__.startswith("tensorflow.python.keras"):
            hint = " This is a model of TensorFlow's own Keras 2: build it with `tf_keras`."
        raise ValueError(
            "`model` must be a Keras 3 model (`keras.Model`). "
            f"Received: {type(model).__module__}.{type(model).__name__}.{hint}"
        )
    if not model.built:
        raise ValueError(
            "`model` must be built, so that its weights and shapes are known. "
            f"Received: {type(model).__name__} {model.name!r} without an input shape. "
            "Start it with `keras.Input(shape)`, call `model.build(input_shape)`, or call it on "
            "data."
        )


@contextlib.contextmanager
def opened(layer: keras.Layer, args: tuple = (), kwargs: dict | None = None) -> Iterator[Any]:
    """A Functional model of the layers themselves that computes what a call of `layer` does.

    Subclassed models and layers are traced: called on symbolic inputs. What Keras notes of that in
    the layers that they hold is removed in the end.

    Args:
        layer: a model, or a layer that holds others.
        args: positional arguments of the call; none for the call it was built for.
        kwargs: keyword arguments of the call.
    """
    if is_traced(layer):
        run = _step_by_step if isinstance(layer, keras.layers.TimeDistributed) else _trace
        own = (layer.input,) if hasattr(layer, "operations") else ()
        with internals.unnoted(internals.layers_in(layer)):
            yield run(layer, args or own or _built_for(layer), kwargs or {})
    elif isinstance(layer, keras.Sequential):
        # The graph of a Sequential is in a private model inside it; this is an equal one.
        yield keras.Model(layer.inputs[0], layer.outputs[0], name=layer.name)
    else:
        yield layer


def is_traced(layer: keras.Layer) -> bool:
    """Whether a layer has no graph: Keras names operations in its call anew each time it runs."""
    # A subclass of Sequential or Functional may have a `call` of its own, which then counts.
    has_own_call = not internals.is_of_keras(type(layer).call, "models")
    return has_own_call or not (isinstance(layer, keras.Sequential) or hasattr(layer, "operations"))


@contextlib.contextmanager
def opened_activation(layer: keras.Layer, args: tuple, kwargs: dict) -> Iterator[keras.Model]:
    """A Functional model that computes what the activation of a layer does."""
    function: Any = own_activation(layer)
    is_layer = isinstance(function, keras.Layer)
    inner = [function, *internals.layers_in(function)] if is_layer else []
    with internals.unnoted(inner):
        try:
            x = layer.compute_output_spec(*args, **kwargs)
            functional = trace(layer.name, lambda x: (function(x), []), (x,), {}, None)
        except Exception as error:  # The user's code may raise anything.
            raise ValueError("An activation must run on symbolic tensors.") from error
        yield functional


def _step_by_step(layer: Any, args: tuple, kwargs: dict) -> keras.Model:
    """The Functional model of a TimeDistributed: its layer, called on each step of a sequence."""
    del kwargs  # Layers inside get `training` as those of a model do.
    (x,) = args
    if x.shape[1] is None or internals.has_mask(x):
        raise ValueError("A TimeDistributed must read a sequence of known length, without a mask.")

    def call(x: Any) -> tuple[Any, list[Any]]:
        # Keras's own `call` would take part of layers, whose weights each step had for itself.
        steps = [layer.layer(x[:, i]) for i in range(x.shape[1])]
        return Stack(1, name=layer.name, dtype="float32")(steps), []

    return trace(layer.name, call, args, {}, layer)


def _trace(layer: keras.Layer, args: tuple, kwargs: dict) -> keras.Model:
    """The Functional model of what `layer.call` does with its layers."""

    def call(*args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        losses: list[Any] = []
        with internals.replaced(layer, add_loss=losses.append):
            # Not `layer(...)`: Keras would then note one call of the layer, none of those in it.
            return layer.call(*args, **kwargs), losses

    if internals.takes_training(layer):
        # Not False, its usual default, which layers inside would take for their own.
        kwargs = {"training": None, **kwargs}
    try:
        return trace(layer.name, call, args, kwargs, layer)
    except Exception as error:  # `call` is the user's code, and may raise anything.
        raise ValueError(
            "A subclassed model must run on symbolic inputs, such as `keras.Input` makes. "
            f"Received: {type(layer).__name__} {layer.name!r}, whose `call` raises "
            f"{type(error).__name__}: {error!s:.300}\nUse layers and `keras.ops` in it, or build "
            "the same layers with `keras.Model(inputs, outputs)`."
        ) from error


def trace(
    name: str, function: Callable[..., Any], args: tuple, kwargs: dict, layer: Any
) -> keras.Model:
    """The Functional model of what a function of tensors does.

    Args:
        name: of the model.
        function: the function. It returns outputs and losses.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        layer: the layer that the function belongs to, or None.
    """
    # On tensors without a past: those of the arguments lead back through the caller's graph.
    args, kwargs = keras.tree.map_structure(
        lambda x: (
            keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
            if isinstance(x, keras.KerasTensor)
            else x
        ),
        (args, kwargs),
    )
    try:
        with keras.StatelessScope():  # What it assigns to variables is not to stay.
            returned = function(*args, **kwargs)
        return _model(name, tensors_of(args, kwargs), *returned)
    except Exception:  # Such as Keras's, that a function of TensorFlow takes no symbolic tensors.
        returned = tracing.replay(function, (args, kwargs), layer)
        return _model(name, tensors_of(args, kwargs), *returned)


def _model(name: str, inputs: Any, outputs: Any, losses: list[Any]) -> keras.Model:
    """The Functional model between tensors, which adds losses."""
    # Keras 3.10 finds no way between a tensor and itself.
    given = {id(x) for x in symbolic(inputs)}
    outputs = keras.tree.map_structure(
        lambda y: keras.layers.Identity()(y) if id(y) in given else y, outputs
    )
    return keras.Model(inputs, keep_losses(name, inputs, outputs, losses), name=name)


def _built_for(model: keras.Model) -> tuple:
    """Symbolic arguments of the shapes that a subclassed model was built for."""
    config = model.get_build_config() or {}
    # Keras writes several arguments as a dict by name, a single one without its name.
    shapes = config.get("shapes_dict") or {"inputs": config.get("input_shape")}
    if None in shapes.values():
        raise ValueError(
            "A subclassed model must know its input shapes. "
            f"Received: {type(model).__name__} {model.name!r}. Call it on data once."
        )
    names = inspect.signature(model.call).parameters
    taken = {x.name for x in [model, *internals.layers_in(model)]}
    return tuple(
        _argument(name, shape, taken)
        for name, shape in zip(names, shapes.values(), strict=False)  # Others have defaults.
    )


def _argument(name: str, shape: Any, taken: set[str]) -> Any:
    """Symbolic tensors of a structure of shapes, called `name`, by their keys, or by numbers."""
    # The batch that it was built on was some batch: the size of another may differ.
    tensors = keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:])), _plain(shape)
    )
    flat = keras.tree.flatten(tensors)
    names = [name] if len(flat) == 1 else [f"{name}_{i}" for i in range(len(flat))]
    if isinstance(tensors, dict) and len(flat) == len(tensors):
        names = sorted(tensors)  # The order in which Keras flattens a dict.
    for tensor, own in zip(flat, names, strict=True):
        # Inputs become layers, and Keras wants a name of its own for every layer of a model.
        tensor.name = distinct_name(own, taken)
    return tensors


def _plain(shape: Any) -> Any:
    """A structure of shapes without the dict class that Keras tracks attributes in."""
    return {key: _plain(x) for key, x in shape.items()} if isinstance(shape, dict) else shape


def tensors_of(args: tuple, kwargs: dict) -> Any:
    """What a Functional model is called on where a layer is called on `args` and `kwargs`."""
    return args[0] if len(args) == 1 and not symbolic(kwargs) else symbolic((args, kwargs))
