"""Functions of tensors that are traced once and called by all layers, or only where that pays."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

# To trace a function takes about as long as this many batches, operator by operator.
FEW = 8


def traced_if_often(*signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function run as it is in its first `FEW` calls, and traced in those behind.

    Args:
        signature: the `tf.TensorSpec` of each argument, or structures of them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        traced = tf.function(function, input_signature=signature, autograph=False)
        return few_then(
            lambda *args: function(*keras.tree.map_structure(_cast, signature, args)), traced
        )

    return decorate


def few_then(first: Callable[..., Any], often: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is `first` in its first `FEW` calls, and `often`, which is traced, behind."""
    calls = itertools.count()
    return lambda *args: (first if next(calls) < FEW else often)(*args)


def _cast(spec: tf.TensorSpec, x: Any) -> tf.Tensor:
    return tf.cast(x, spec.dtype)


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced once for each kind of arguments: types, ranks and what is no tensor.

    Each call is one operator of a model, in place of a dozen: the model's own trace and its first
    step take a fraction of the time.

    Args:
        function: pure; of tensors, of lists and dataclasses of them, such as a grid, and of
            constants. All that it returns has the shape that its tensors have when they are
            broadcast, or the last axes of it.
    """

    @functools.cache
    def traced(kind: tuple, constants: tuple[tuple[str, Any], ...]) -> Any:
        def run(*tensors: tf.Tensor) -> Any:
            return function(*_joined(kind, iter(tensors)), **dict(constants))

        found = tf.function(
            run,
            # Of any size, or there would be as many traces as layers.
            input_signature=[*_specs(kind)],
            autograph=False,
            # Inlined, its operators would be optimized anew for each layer.
            experimental_attributes={"_noinline": True},
        )
        # TensorFlow takes all that are made here for one function, and warns of its many traces.
        # Outside of what is being traced, whose device and control flow are not those of others.
        with tf.init_scope():
            return found.get_concrete_function()

    @functools.wraps(function)
    def call(*args: Any, **constants: Any) -> Any:
        tensors: list[tf.Tensor] = []
        kind = _parted(args, tensors)
        found = traced(kind, tuple(constants.items()))(*tensors)
        shape = functools.reduce(tf.broadcast_static_shape, (x.shape for x in tensors))
        for tensor in filter(tf.is_tensor, tf.nest.flatten(found)):
            tensor.set_shape(shape[shape.rank - tensor.shape.rank :])
        return found

    return call


def _parted(value: Any, tensors: list[tf.Tensor]) -> Any:
    """`value` with the type and rank of each tensor in its place; puts those into a list."""
    if isinstance(value, (list, tuple)):
        return tuple(_parted(x, tensors) for x in value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        parts = ((field.name, _parted(getattr(value, field.name), tensors)) for field in fields)
        return _Parts(type(value), tuple(parts))
    if not hasattr(value, "dtype"):
        return value
    tensor = tf.convert_to_tensor(value)
    tensors.append(tensor)
    return tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A dataclass and its parts by name."""

    kind: type
    parts: tuple[tuple[str, Any], ...]


def _joined(kind: Any, tensors: Iterator[tf.Tensor]) -> Any:
    """What `_parted` has parted, of other tensors."""
    if isinstance(kind, tuple):
        return tuple(_joined(x, tensors) for x in kind)
    if isinstance(kind, _Parts):
        return kind.kind(**{name: _joined(part, tensors) for name, part in kind.parts})
    return next(tensors) if isinstance(kind, tf.TensorSpec) else kind


def _specs(kind: Any) -> Iterator[tf.TensorSpec]:
    """The types and ranks of the tensors, in order."""
    if isinstance(kind, tuple):
        for x in kind:
            yield from _specs(x)
    elif isinstance(kind, _Parts):
        for _, part in kind.parts:
            yield from _specs(part)
    elif isinstance(kind, tf.TensorSpec):
        yield kind
