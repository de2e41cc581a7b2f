"""What kerasq needs of Keras 3 that Keras keeps private; no other module of ours reads such a name.

Checked with Keras 3.10 to 3.15: `bash tools/test --oldest` runs the lower end.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import compute_output_spec
from keras.src.backend.common import global_state
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

# Where what layers keep is among what Keras keeps for each thread.
_MEMORY = "kerasq_memory"

# A class without a public name.
CONV_CELL: type[keras.Layer] = ConvLSTMCell


def history(tensor: keras.KerasTensor) -> tuple[Any, int, int]:
    """What made a symbolic tensor: an operation, the number of its call, that of the output."""
    operation, call, output = tensor._keras_history
    return operation, call, output


def is_made(x: Any) -> bool:
    """Whether `x` is a tensor of a graph: one that a call, or an input, has made."""
    # A KerasTensor that only stands for a shape, as in `compute_output_spec`, has no history.
    return isinstance(x, keras.KerasTensor) and hasattr(x, "_keras_history")


def record(operation: Any, call: int) -> Any:
    """Keras's own record of a call: `arguments`, `input_tensors` and `outputs`."""
    return operation._inbound_nodes[call]


def levels(model: keras.Model) -> list[list[Any]]:
    """Keras's records of the calls in a Functional model, in the order that Keras runs them in.

    A list for each distance from the outputs; calls of one such list do not read each other.
    """
    by_depth = sorted(model._nodes_by_depth.items(), reverse=True)
    return [[found for found in nodes if not found.is_input] for _, nodes in by_depth]


def at_rank(model: keras.Model, tensors: list[Any]) -> list[Any]:
    """Inputs of a Functional model with the axis of size 1 that Keras adds or takes at the end."""
    return model._adjust_input_rank(tensors)


def has_mask(tensor: Any) -> bool:
    """Whether Keras passes a mask beside a tensor."""
    return getattr(tensor, "_keras_mask", None) is not None


def without_masks(tensors: Any) -> Any:
    """A structure of tensors without the masks that Keras has put beside them."""
    return keras.tree.map_structure(lambda x: tf.identity(x) if has_mask(x) else x, tensors)


def readers(operation: Any) -> list[Any]:
    """The layers and operations that read what one returns, in any graph."""
    return [record.operation for record in operation._outbound_nodes]


def takes_training(layer: Any) -> bool:
    """Whether the `call` of a layer has an argument `training`; that of an operation has none."""
    return getattr(layer, "_call_has_training_arg", False)


def is_of_keras(x: Any, part: str = "") -> bool:
    """Whether a class or method is one of Keras's own, of its folder `part`."""
    # Public names such as keras.layers.Dense say where they really are.
    return x.__module__.startswith(f"keras.src.{part}")


@contextlib.contextmanager
def remembering(memory: dict[Any, Any] | None = None) -> Iterator[None]:
    """Lets layers keep things outside of calls of models too, while no variable changes.

    Args:
        memory: what they have kept before, in which they go on.
    """
    outer = global_state.get_global_attribute(_MEMORY)
    kept = outer if memory is None else memory
    global_state.set_global_attribute(_MEMORY, {} if kept is None else kept)
    try:
        yield
    finally:
        global_state.set_global_attribute(_MEMORY, outer)


def call_memory() -> dict[Any, Any] | None:
    """What layers may keep: by `remembering`, or while a call runs, the outermost one; or None."""
    if (memory := global_state.get_global_attribute(_MEMORY)) is not None:
        return memory
    context = global_state.get_global_attribute("current_call_ctx")
    if context is None:
        return None
    if not hasattr(context, "kerasq_memory"):
        context.kerasq_memory = {}
    return context.kerasq_memory


def once(owner: Any, name: str, compute: Callable[[], Any]) -> Any:
    """What `compute` returns, computed once, whoever asks for it: see `call_memory`."""
    memory = call_memory()
    if memory is None:
        return compute()
    # Branches and loops of a graph have graphs of their own, whose tensors others cannot read.
    key = (owner, name, None if tf.executing_eagerly() else tf.compat.v1.get_default_graph())
    if key not in memory:
        memory[key] = compute()
    return memory[key]


def forget(owner: Any, *names: str) -> None:
    """Lets `once` compute again what an owner has kept: what is named, or all of it."""
    memory = call_memory() or {}
    for key in [x for x in memory if x[0] is owner and (not names or x[1] in names)]:
        del memory[key]


def is_lower_better(metric: Any) -> bool:
    """Whether Keras says of a metric that it falls as the model gets better."""
    return getattr(metric, "_direction", None) == "down"


def projections(attention: keras.Layer) -> tuple[keras.layers.EinsumDense, ...]:
    """The layers of MultiHeadAttention or GroupQueryAttention: query, key, value and output."""
    # They are public in MultiHeadAttention alone.
    names = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")
    return tuple(getattr(attention, name) for name in names)


def output_shape(layer: keras.layers.Lambda) -> Any:
    """The `output_shape` that a Lambda was made with."""
    return layer._output_shape


def build_inside(layer: keras.Layer, called: list[Any]) -> None:
    """Builds the layers that a layer holds and that its `build` leaves to its first call.

    Args:
        layer: the layer.
        called: layers of its class, of which one was called on symbolic tensors, as it is then.
    """
    for record in (found for x in called for found in x._inbound_nodes[:1]):
        args, kwargs = keras.tree.map_structure(
            lambda x: (
                keras.KerasTensor(x.shape, x.dtype) if isinstance(x, keras.KerasTensor) else x
            ),
            (record.arguments.args, record.arguments.kwargs),
        )
        with keras.name_scope(layer.name):
            # Not `layer(...)`, which runs no `call` where there is a `compute_output_shape`.
            compute_output_spec(layer.call, *args, **kwargs)
        return


def layers_in(layer: keras.Layer) -> list[keras.Layer]:
    """All layers that a layer holds, at any depth, without itself."""
    return [x for x in layer._flatten_layers() if x is not layer]


@contextlib.contextmanager
def unnoted(layers: list[keras.Layer]) -> Iterator[None]:
    """Removes in the end what Keras notes in layers of the calls that are made of them inside."""
    noted = [(x, len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers]
    try:
        yield
    finally:
        # Else the user's layers would keep every graph that we trace alive, and a later
        # `layer.output` of theirs could be a tensor of ours.
        for x, inbound, outbound in noted:
            del x._inbound_nodes[inbound:], x._outbound_nodes[outbound:]


@contextlib.contextmanager
def replaced(layer: Any, /, **attributes: Any) -> Iterator[None]:
    """Replaces attributes and methods of one layer inside."""
    before = {name: layer.__dict__[name] for name in attributes if name in layer.__dict__}
    # Past `__setattr__`, which would track what it is given, or refuse it.
    layer.__dict__.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del layer.__dict__[name]
        layer.__dict__.update(before)


def uncalled(operation: Any, **changes: Any) -> Any:
    """A copy of an operation of `keras.ops`, attributes changed by `changes`, that has no calls."""
    # Not all operations have a configuration, or can be made without arguments.
    copy = object.__new__(type(operation))
    nodes: dict[str, list] = {"_inbound_nodes": [], "_outbound_nodes": []}
    copy.__dict__.update({**operation.__dict__, **nodes, **changes})
    return copy


class PlainError(Exception):
    """An error in a layer's call that Keras raises as it is, without pages about its arguments."""

    _keras_call_info_injected = True
