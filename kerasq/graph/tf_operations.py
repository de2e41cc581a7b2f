"""Operations of TensorFlow, and what computes the same in Keras: of `keras.ops`, or a layer."""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

L, ops = keras.layers, keras.ops


def equal(operation: tf.Operation, values: list[Any]) -> Any:
    """What a TensorFlow operation returns, of symbolic tensors of Keras and of constants.

    Args:
        operation: the operation.
        values: what stands for its inputs, a symbolic tensor among them.

    Raises:
        ValueError: where nothing in Keras computes the same.
    """
    if operation.type not in _TABLE:
        raise ValueError(f"TensorFlow's {operation.type} ({operation.name}) has no equal in Keras")
    return _TABLE[operation.type](operation, *values)


def evaluate(operation: tf.Operation, values: list[Any]) -> list[np.ndarray]:
    """What a TensorFlow operation returns, of constants alone."""
    function = getattr(tf.raw_ops, operation.type)
    # Inputs come first there, but under names that may differ from those of the definition.
    names, place = iter(inspect.signature(function).parameters), map(ops.convert_to_numpy, values)
    arguments, inferred = {}, set()
    for x in operation.op_def.input_arg:
        count = operation.get_attr(x.number_attr) if x.number_attr else None
        value = next(place) if count is None else [*itertools.islice(place, count)]
        arguments[next(names)] = value
        inferred |= {x.number_attr, x.type_attr, x.type_list_attr}
    own = [x.name for x in operation.op_def.attr if x.name not in inferred]
    options = {name: operation.get_attr(name) for name in own}
    with tf.init_scope():
        return [np.asarray(y) for y in tf.nest.flatten(function(**arguments, **options))]


def _function(name: str) -> Callable[..., Any]:
    return lambda operation, *values: getattr(ops, name)(*values)


def _sum(operation: tf.Operation, x: Any, y: Any) -> Any:
    # As the second operand `keras.ops.add` takes some constants for a bias along another axis.
    return ops.add(x, y) if isinstance(y, keras.KerasTensor) else ops.add(y, x)


def _bias_add(operation: tf.Operation, x: Any, y: Any) -> Any:
    _demand(operation, data_format=b"NHWC")
    return _sum(operation, x, y)


def _identity(operation: tf.Operation, *values: Any) -> Any:
    if "_gradient_op_type" in operation.node_def.attr:
        raise ValueError(f"{operation.name} has a gradient of its own (tf.custom_gradient)")
    return list(values)


def _demand(operation: tf.Operation, **options: Any) -> None:
    """Raises a ValueError where an option has another value than the one that Keras has."""
    for name, value in options.items():
        found = operation.get_attr(name)
        if found != value:
            raise ValueError(
                f"TensorFlow's {operation.type} ({operation.name}) with {name}={found!r}, not "
                f"{value!r}, has no equal in Keras"
            )


def _axes(values: Any) -> tuple[int, ...]:
    return tuple(int(x) for x in np.ravel(values))


def _reduction(name: str) -> Callable[..., Any]:
    def make(operation: tf.Operation, x: Any, axes: Any) -> Any:
        keepdims = operation.get_attr("keep_dims")
        return getattr(ops, name)(x, axis=_axes(axes), keepdims=keepdims)

    return make


def _extreme(name: str) -> Callable[..., Any]:
    return lambda operation, x, axis: getattr(ops, name)(x, axis=int(axis))


def _product(operation: tf.Operation, x: Any, y: Any) -> Any:
    """A product of matrices, of which each may be transposed."""
    flags = ("transpose_a", "transpose_b") if operation.type == "MatMul" else ("adj_x", "adj_y")
    x, y = (
        ops.swapaxes(v, -1, -2) if operation.get_attr(flag) else v
        for v, flag in zip((x, y), flags, strict=True)
    )
    return ops.matmul(x, y)


def _reshape(operation: tf.Operation, x: Any, shape: Any) -> Any:
    sizes = [int(n) for n in shape]
    if sizes.count(-1) == 2 and sizes[0] == -1:  # The first is the number of samples.
        sizes[sizes.index(-1, 1)] = int(np.prod(x.shape[1:]) // -np.prod(sizes[1:]))
    return ops.reshape(x, sizes)


def _squeeze(operation: tf.Operation, x: Any) -> Any:
    axes = _axes(operation.get_attr("squeeze_dims"))
    return ops.squeeze(x, axes or None)


def _concatenate(operation: tf.Operation, *values: Any) -> Any:
    *parts, axis = values
    return ops.concatenate(parts, int(axis))


def _split(operation: tf.Operation, x: Any, sizes: Any, axis: Any) -> Any:
    # TensorFlow wants the sizes of parts, Keras the places between them.
    return ops.split(x, _axes(np.cumsum(sizes)[:-1]), int(axis))


def _flip(operation: tf.Operation, x: Any, axes: Any) -> Any:
    # One by one: Keras 3.10 takes no tuple.
    return functools.reduce(ops.flip, _axes(axes), x)


def _gather(operation: tf.Operation, x: Any, indices: Any, axis: Any) -> Any:
    _demand(operation, batch_dims=0)
    return ops.take(x, indices, axis=int(axis))


def _pad(operation: tf.Operation, x: Any, pads: Any, value: Any = 0) -> Any:
    pads = np.asarray(pads).tolist()
    if len(pads) == 4 and pads[0] == pads[3] == [0, 0] and not np.any(value):
        return L.ZeroPadding2D(pads[1:3])(x)
    return ops.pad(x, pads, constant_values=value)


def _mirror(operation: tf.Operation, x: Any, pads: Any) -> Any:
    return ops.pad(x, np.asarray(pads).tolist(), mode=operation.get_attr("mode").decode().lower())


def _slice(operation: tf.Operation, x: Any, begin: Any, size: Any) -> Any:
    places = zip(_axes(begin), _axes(size), strict=True)
    return x[tuple(slice(a, None if n == -1 else a + n) for a, n in places)]


def _strided_slice(operation: tf.Operation, x: Any, begin: Any, end: Any, step: Any) -> Any:
    """A slice, of whose masks bit i is for the i-th term of the index."""
    masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    starts, ends, ellipses, new, picked = (operation.get_attr(name) for name in masks)

    def term(i: int, a: int, b: int, n: int) -> Any:
        bit = 1 << i
        if ellipses & bit:
            return Ellipsis
        if new & bit:
            return None
        if picked & bit:
            return a
        return slice(None if starts & bit else a, None if ends & bit else b, n)

    terms = enumerate(zip(_axes(begin), _axes(end), _axes(step), strict=True))
    return x[tuple(term(i, *places) for i, places in terms)]


def _resize(interpolation: str) -> Callable[..., Any]:
    def make(operation: tf.Operation, x: Any, size: Any) -> Any:
        _demand(operation, half_pixel_centers=True, align_corners=False)
        return L.Resizing(*_axes(size), interpolation=interpolation)(x)

    return make


def _blocks(is_space: bool) -> Callable[..., Any]:
    """Blocks of pixels to channels, or back."""

    def make(operation: tf.Operation, x: Any) -> Any:
        _demand(operation, data_format=b"NHWC")
        n, (_, h, w, c) = operation.get_attr("block_size"), x.shape
        if is_space:
            x = ops.transpose(ops.reshape(x, (-1, h // n, n, w // n, n, c)), (0, 1, 3, 2, 4, 5))
            return ops.reshape(x, (-1, h // n, w // n, n * n * c))
        c = c // n**2
        x = ops.transpose(ops.reshape(x, (-1, h, w, n, n, c)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, h * n, w * n, c))

    return make


def _window(operation: tf.Operation, *names: str) -> tuple[str, list[tuple[int, ...]]]:
    """The padding of what slides a window, and of options those that are for rows and columns."""
    _demand(operation, data_format=b"NHWC")
    padding = operation.get_attr("padding").decode().lower()
    options = [operation.get_attr(name) for name in names]
    if padding == "explicit" or any(x[0] != 1 or x[3] != 1 for x in options):
        raise ValueError(
            f"TensorFlow's {operation.type} ({operation.name}) with {padding=} and {options} has "
            "no equal in Keras"
        )
    return padding, [tuple(x[1:3]) for x in options]


def _pooling(layer: type) -> Callable[..., Any]:
    def make(operation: tf.Operation, x: Any) -> Any:
        padding, (size, strides) = _window(operation, "ksize", "strides")
        return layer(size, strides, padding)(x)

    return make


def _convolution(name: str) -> Callable[..., Any]:
    def make(operation: tf.Operation, x: Any, kernel: Any) -> Any:
        padding, (strides, dilations) = _window(operation, "strides", "dilations")
        return getattr(ops, name)(x, kernel, strides, padding, dilation_rate=dilations)

    return make


# What has the same name there, but for the spelling, and the same arguments.
_ALIKE = (
    "abs ceil cos cosh elu equal erf exp expm1 floor greater greater_equal less less_equal log "
    "log1p log_softmax logical_and logical_not logical_or maximum minimum not_equal ones_like "
    "reciprocal relu relu6 round rsqrt selu sigmoid sign sin sinh softmax softplus softsign sqrt "
    "square stop_gradient tan tanh zeros_like"
)
_RENAMED = {
    "Acos": "arccos",
    "Asin": "arcsin",
    "Asinh": "arcsinh",
    "Atan": "arctan",
    "Atanh": "arctanh",
    "Div": "divide",
    "FloorDiv": "floor_divide",
    "FloorMod": "mod",
    "Inv": "reciprocal",
    "Mul": "multiply",
    "Neg": "negative",
    "Pow": "power",
    "RealDiv": "divide",
    "Rint": "round",
    "SelectV2": "where",
    "Sub": "subtract",
}
_TABLE: dict[str, Callable[..., Any]] = {
    **{"".join(map(str.capitalize, name.split("_"))): _function(name) for name in _ALIKE.split()},
    **{kind: _function(name) for kind, name in _RENAMED.items()},
    "Add": _sum,
    "AddV2": _sum,
    "AddN": lambda operation, *x: functools.reduce(ops.add, x),
    "BiasAdd": _bias_add,
    "SquaredDifference": lambda operation, x, y: ops.square(ops.subtract(x, y)),
    "LeakyRelu": lambda operation, x: ops.leaky_relu(x, operation.get_attr("alpha")),
    "Cast": lambda operation, x: ops.cast(x, operation.get_attr("DstT").name),
    "CheckNumerics": _identity,
    "EnsureShape": _identity,
    "Identity": _identity,
    "IdentityN": _identity,
    "Snapshot": _identity,
    "Max": _reduction("max"),
    "Mean": _reduction("mean"),
    "Min": _reduction("min"),
    "Prod": _reduction("prod"),
    "Sum": _reduction("sum"),
    "ArgMax": _extreme("argmax"),
    "ArgMin": _extreme("argmin"),
    "BatchMatMulV2": _product,
    "MatMul": _product,
    "Einsum": lambda operation, *x: ops.einsum(operation.get_attr("equation").decode(), *x),
    "Conv2D": _convolution("conv"),
    "DepthwiseConv2dNative": _convolution("depthwise_conv"),
    "AvgPool": _pooling(L.AveragePooling2D),
    "MaxPool": _pooling(L.MaxPooling2D),
    "ResizeBilinear": _resize("bilinear"),
    "ResizeNearestNeighbor": _resize("nearest"),
    "DepthToSpace": _blocks(is_space=False),
    "SpaceToDepth": _blocks(is_space=True),
    "BroadcastTo": lambda operation, x, shape: ops.broadcast_to(x, _axes(shape)),
    "ConcatV2": _concatenate,
    "ExpandDims": lambda operation, x, axis: ops.expand_dims(x, int(axis)),
    "GatherV2": _gather,
    "MirrorPad": _mirror,
    "Pack": lambda operation, *x: ops.stack(x, operation.get_attr("axis")),
    "Pad": _pad,
    "PadV2": _pad,
    "Reshape": _reshape,
    "ResourceGather": lambda operation, x, indices: ops.take(x, indices, axis=0),
    "ReverseV2": _flip,
    "Roll": lambda operation, x, shift, axes: ops.roll(x, _axes(shift), _axes(axes)),
    "Slice": _slice,
    "Split": lambda operation, axis, x: ops.split(x, operation.get_attr("num_split"), int(axis)),
    "SplitV": _split,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "TopKV2": lambda operation, x, k: ops.top_k(x, int(k), operation.get_attr("sorted")),
    "Tile": lambda operation, x, count: ops.tile(x, _axes(count)),
    "Transpose": lambda operation, x, axes: ops.transpose(x, _axes(axes)),
    "Unpack": lambda operation, x: ops.unstack(
        x, operation.get_attr("num"), operation.get_attr("axis")
    ),
}
