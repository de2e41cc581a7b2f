"""Calls that Keras cannot make on symbolic tensors, made there by way of a TensorFlow graph.

Functions of TensorFlow refuse the symbolic tensors of Keras. So what calls them is traced by
TensorFlow, and each operation of the trace becomes the one of Keras that computes the same, on
symbolic tensors. Calls of layers stay calls of layers.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.graph import internals, tf_operations

ops = keras.ops


def replay(function: Callable[..., Any], arguments: tuple[tuple, dict], layer: Any) -> Any:
    """What a function returns on symbolic tensors of Keras, though it calls TensorFlow's.

    Args:
        function: the function.
        arguments: its arguments, by place and by name, symbolic tensors among them.
        layer: the layer that it belongs to, whose variables it may read and whose layers it may
            call, or None.

    Raises:
        ValueError: where an operation of TensorFlow has no equal in Keras.
    """
    symbols = [x for x in keras.tree.flatten(arguments) if isinstance(x, keras.KerasTensor)]
    inner = internals.layers_in(layer) if isinstance(layer, keras.Layer) else []
    recorder, returned = _Recorder(), []

    def traced(*tensors: tf.Tensor) -> None:
        place = iter(tensors)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(place) if isinstance(x, keras.KerasTensor) else x, arguments
        )
        # What it assigns to variables, such as a moving average, is not to stay.
        with keras.StatelessScope(), _without_functions(), recorder.watching(inner):
            returned.append(function(*args, **kwargs))

    specs = [tf.TensorSpec(x.shape, x.dtype) for x in symbols]
    trace = tf.function(traced, autograph=False).get_concrete_function(*specs)
    given = [*symbols, *_captured(trace, getattr(layer, "weights", []))]
    values = {x.name: value for x, value in zip(trace.inputs, given, strict=True)}
    found = _Replay(values, recorder.calls)
    found.run(trace.graph, [x for x in tf.nest.flatten(returned) if tf.is_symbolic_tensor(x)])
    return found.valued(returned[0])


@contextlib.contextmanager
def _without_functions() -> Iterator[None]:
    """Runs what is a `tf.function` as the Python that it is made of."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _captured(trace: Any, weights: list[keras.Variable]) -> list[Any]:
    """What a trace reads beside its arguments: variables, and values of other tensors."""
    own = {id(x.value.handle): x for x in weights}
    # Those that Keras does not know do not train in the float model either.
    others = {id(x.handle): x.numpy() for x in trace.variables}
    return [
        own.get(id(x), others.get(id(x))) if x.dtype == tf.resource else x.numpy()
        for x in trace.captured_inputs
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a layer in a trace, with tensors of that."""

    layer: keras.Layer
    args: tuple
    kwargs: dict
    outputs: list[tf.Tensor]


class _Recorder:
    """Notes which tensors of a trace are outputs of layers."""

    def __init__(self) -> None:
        self.calls: dict[str, _Call] = {}  # by name of a tensor
        self._is_inside = False

    @contextlib.contextmanager
    def watching(self, layers: list[keras.Layer]) -> Iterator[None]:
        """Notes the calls of these layers, but for those that one makes of another."""
        with contextlib.ExitStack() as stack:
            for layer in layers:
                noting = functools.partial(self._note, layer, layer.call)
                stack.enter_context(internals.replaced(layer, call=noting))
            yield

    def _note(self, layer: keras.Layer, call: Callable, *args: Any, **kwargs: Any) -> Any:
        if self._is_inside:
            return call(*args, **kwargs)
        self._is_inside = True
        try:
            # New tensors: a layer may return what it was called on, as Dropout does.
            returned = keras.tree.map_structure(tf.identity, call(*args, **kwargs))
        finally:
            self._is_inside = False
        outputs = keras.tree.flatten(returned)
        noted = _Call(layer=layer, args=args, kwargs=kwargs, outputs=outputs)
        self.calls.update(dict.fromkeys([x.name for x in outputs], noted))
        return returned


class _Replay:
    """The operations of a trace, made on what stands for its inputs.

    Args:
        values: by name of a tensor, what stands for it: a symbolic tensor of Keras, a variable, or
            a constant.
        calls: by name of a tensor, the call of the layer that returned it.
    """

    def __init__(self, values: dict[str, Any], calls: dict[str, _Call]) -> None:
        self._values = values
        self._calls = calls
        self._unknown: set[str] = set()  # of shapes: those with the number of samples, as -1

    def run(self, graph: Any, outputs: list[tf.Tensor]) -> None:
        """Makes the operations that lead to the outputs."""
        needed = self._needed(outputs)
        for operation in graph.get_operations():  # In the order in which they were traced.
            if operation.name in needed:
                self._make(operation)

    def valued(self, structure: Any) -> Any:
        """A structure of tensors of the trace, with what stands for them."""
        return keras.tree.map_structure(
            lambda x: self._values[x.name] if tf.is_symbolic_tensor(x) else x, structure
        )

    def _needed(self, outputs: list[tf.Tensor]) -> set[str]:
        """Names of the operations that lead to the outputs; none of those inside of layers."""
        found: set[str] = set()
        rest = [*outputs]
        while rest:
            tensor = rest.pop()
            if tensor.name not in self._values and tensor.op.name not in found:
                found.add(tensor.op.name)
                rest += self._reads(tensor.op)
        return found

    def _reads(self, operation: tf.Operation) -> list[tf.Tensor]:
        """The tensors that are needed to make an operation."""
        call, composite = self._calls.get(operation.outputs[0].name), _composite(operation)
        if call is not None:
            arguments = keras.tree.flatten((call.args, call.kwargs))
            return [x for x in arguments if tf.is_symbolic_tensor(x)]
        return composite[1] if composite else [*operation.inputs]

    def _make(self, operation: tf.Operation) -> None:
        """Adds what an operation returns to the values."""
        call, composite = self._calls.get(operation.outputs[0].name), _composite(operation)
        tensors = [*operation.outputs]
        if call is not None:
            tensors = call.outputs
            if tensors[0].name in self._values:
                return
            args, kwargs = self.valued((call.args, call.kwargs))
            found = call.layer(*args, **kwargs)
        elif composite is not None:
            function, inputs = composite
            found = [function(*self.valued(inputs))] * len(tensors)
        else:
            found = self._plain(operation, self.valued([*operation.inputs]))
        self._values.update(
            {x.name: y for x, y in zip(tensors, keras.tree.flatten(found), strict=True)}
        )

    def _plain(self, operation: tf.Operation, values: list[Any]) -> Any:
        """What an operation returns that is neither a layer's nor part of several."""
        if operation.type == "Const":
            return tf.get_static_value(operation.outputs[0])
        if operation.type == "ReadVariableOp":
            return values
        is_symbolic = any(isinstance(x, keras.KerasTensor) for x in values)
        if not is_symbolic or operation.type == "Shape":
            return self._constants(operation, values)
        if operation.type != "Reshape":
            self._refuse_unknown(operation)
        return tf_operations.equal(operation, values)

    def _constants(self, operation: tf.Operation, values: list[Any]) -> list[np.ndarray]:
        """What an operation returns of constants, or of a shape alone."""
        if operation.type == "Shape":
            found = [np.array([-1 if n is None else n for n in values[0].shape], np.int32)]
        else:
            if operation.type not in _MOVES:
                self._refuse_unknown(operation)
            found = tf_operations.evaluate(operation, values)
        if operation.type == "Shape" or self._reads_unknown(operation):
            pairs = zip(operation.outputs, found, strict=True)
            self._unknown |= {x.name for x, y in pairs if np.any(y == -1)}
        return found

    def _reads_unknown(self, operation: tf.Operation) -> bool:
        return any(x.name in self._unknown for x in operation.inputs)

    def _refuse_unknown(self, operation: tf.Operation) -> None:
        if self._reads_unknown(operation):
            raise ValueError(f"{operation.name} computes with the number of samples")


# What may be done to a shape with a number that is not known.
_MOVES = ("Cast", "ConcatV2", "GatherV2", "Identity", "Pack", "Slice", "StridedSlice", "Unpack")


def _clip(x: Any, low: Any, high: Any) -> Any:
    """`clip`; of limits that are tensors, or differ from value to value, as it is made of."""
    if np.ndim(low) == np.ndim(high) == 0 and not internals.is_made(low):
        return ops.clip(x, low, high)
    return ops.maximum(ops.minimum(x, high), low)


# Functions of TensorFlow that are made of several operations, the number of their tensors, and
# what they are in Keras as one.
_COMPOSITES: tuple[tuple[Callable[..., Any], int, Callable[..., Any]], ...] = (
    (tf.nn.gelu, 1, lambda x: ops.gelu(x, approximate=False)),
    (functools.partial(tf.nn.gelu, approximate=True), 1, ops.gelu),
    (tf.nn.silu, 1, ops.silu),
    (tf.clip_by_value, 3, _clip),
)


@functools.cache
def _patterns() -> list[tuple[tf.Tensor, list[tf.Tensor], Callable[..., Any]]]:
    """The output and the inputs of each composite, as TensorFlow makes it."""
    found = []
    with tf.Graph().as_default():
        for function, count, equal in _COMPOSITES:
            inputs = [tf.compat.v1.placeholder(tf.float32) for _ in range(count)]
            found.append((function(*inputs), inputs, equal))
    return found


def _composite(operation: tf.Operation) -> tuple[Callable[..., Any], list[tf.Tensor]] | None:
    """What computes the same as an operation and some before it, and what it is called on."""
    if (matrices := _matrices(operation)) is not None:
        return ops.matmul, matrices
    if (found := _for_samples(operation)) is not None:
        return functools.partial(_repeated, [*operation.outputs[0].shape[1:]]), found
    for output, inputs, equal in _patterns():
        bound: dict[str, tf.Tensor] = {}
        if operation.type == output.op.type and _fits(operation.outputs[0], output, bound):
            return equal, [bound[x.name] for x in inputs]
    return None


def _matrices(operation: tf.Operation) -> list[tf.Tensor] | None:
    """The operands of a `tf.tensordot` of the last axis and a matrix, given its end.

    TensorFlow flattens all other axes, and gives them back.
    """
    chain, end = [], operation
    for kind in ("Reshape", "MatMul", "Reshape", "Transpose"):
        if end.type != kind:
            return None
        chain.append(end)
        end = end.inputs[0].op
    _, product, _, moved = chain
    x, matrix = moved.inputs[0], product.inputs[1]
    axes = tf.get_static_value(moved.inputs[1])
    is_last = axes is not None and [*axes] == [*range(len(axes))]
    fits = operation.outputs[0].shape.as_list() == [*x.shape[:-1], matrix.shape[-1]]
    return [x, matrix] if is_last and fits else None


def _for_samples(operation: tf.Operation) -> list[tf.Tensor] | None:
    """The tensor of which there shall be one for each sample, and one whose samples are counted."""
    if not _is_batch(operation.outputs[0].shape):
        return None
    x, shape = None, operation.inputs[-1]
    match operation.type:
        case "BroadcastTo":
            x = operation.inputs[0]
        case "Fill":
            shape, x = operation.inputs
        case "Tile" if operation.inputs[0].shape[:1] == [1]:
            x = operation.inputs[0]
        case "Reshape":
            x, shape = _repeat(operation)
    counted = None if x is None else _counted(shape)
    return None if counted is None else [x, counted]


def _repeat(operation: tf.Operation) -> tuple[tf.Tensor | None, tf.Tensor]:
    """What `tf.repeat` repeats along the axis of samples, given its end; and how often."""
    tiled = operation.inputs[0]
    moved = tiled.op.inputs[0] if tiled.op.type == "Tile" else tiled
    if moved is tiled or moved.op.type != "ExpandDims":
        return None, tiled
    x, one = moved.op.inputs[0], operation.outputs[0].shape[1:].as_list()
    is_repeat = x.shape.as_list() == [1, *one] and tiled.shape.as_list() == [1, None, *one]
    return x if is_repeat else None, tiled.op.inputs[1]


def _is_batch(shape: tf.TensorShape) -> bool:
    """Whether the number of samples alone is not known of a shape."""
    return bool(shape.rank) and shape[0] is None and None not in shape[1:].as_list()


def _counted(shape: tf.Tensor) -> tf.Tensor | None:
    """The tensor whose number of samples is in a shape, as it is."""
    rest: list[tf.Tensor] = [shape]
    found: list[tf.Tensor] = []
    while rest:
        operation = rest.pop().op
        if operation.type not in (*_MOVES, "Const", "Reshape", "Shape"):
            return None
        (found if operation.type == "Shape" else rest).extend(operation.inputs)
    return found[0] if found and all(_is_batch(x.shape) for x in found) else None


def _repeated(shape: list[int], x: Any, counted: Any) -> Any:
    """`x`, broadcast or repeated to a `shape` behind the axis of samples, for each of them."""
    if isinstance(x, keras.KerasTensor):
        return ops.tile(x, [1, *(n // m for n, m in zip(shape, x.shape[1:], strict=True))])
    # Operations of Keras need a tensor that has the samples.
    count, size = int(np.prod(shape)), int(np.prod(counted.shape[1:]))
    real = counted if counted.dtype == "float32" else ops.cast(counted, "float32")
    zeros = ops.zeros_like(ops.reshape(real, (-1, size))[:, :count])
    if size < count:
        zeros = ops.tile(zeros, (1, -(-count // size)))[:, :count]
    return ops.add(x, ops.reshape(zeros, (-1, *shape)))


def _fits(tensor: tf.Tensor, pattern: tf.Tensor, bound: dict[str, tf.Tensor]) -> bool:
    """Whether a tensor is made as a pattern is; `bound` gets what stands for its placeholders."""
    kind = pattern.op.type
    if kind == "Placeholder":
        return bound.setdefault(pattern.name, tensor).name == tensor.name
    if kind == "Const":
        value = tf.get_static_value(tensor)
        return value is not None and np.array_equal(value, tf.get_static_value(pattern))
    pairs = zip(tensor.op.inputs, pattern.op.inputs, strict=False)
    return tensor.op.type == kind and all(_fits(x, y, bound) for x, y in pairs)
