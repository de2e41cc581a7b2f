"""Operators and functions of `keras.ops` in a graph, as the layers that compute the same."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq import fits
from kerasq.graph import Node, symbolic
from kerasq.layer_rules import COMPARISONS
from kerasq.layers import (
    MASKED,
    ArgMax,
    ArgMin,
    Compare,
    Constant,
    Deviation,
    Divide,
    Function,
    Gelu,
    Max,
    Mean,
    Min,
    Select,
    Sum,
    Variance,
)
from kerasq.prepare import axes, normalization, products, windows

L = keras.layers

# What stands for a call: a layer without weights of its own, or a constant gain and shift, and
# what it is called on.
Scaled = tuple[Any, Any]
Equal = tuple[keras.Layer | Scaled, Any]


def equal(node: Node, *args: Any, name: str, feeds_softmax: bool = False) -> Equal | None:
    """The layer that computes what a call of a Keras operation does, and its input.

    Args:
        node: the call, of a `keras.Operation` that is no layer.
        *args: positional arguments in place of the node's own.
        name: of the layer.
        feeds_softmax: whether nothing but softmax reads it: then there may be infinite constants.

    Returns:
        A layer, or gain and shift where the operation is `gain * x + shift` with constants of shape
        `()` or `(channels,)`; and its input. None where no layer computes the same.
    """
    make = _TABLE.get(type(node.layer).__name__)  # The classes are private to Keras.
    if make is None or not _is_real(node):
        return None
    if feeds_softmax:
        args = tuple(map(_as_masked, args))
    return make(node, args, {"name": name, "dtype": "float32"})


def _is_real(node: Node) -> bool:
    """Whether an operation computes with values that lie on grids, or chooses among such."""
    values = [x for x in node.inputs if x.dtype != "bool"]  # A condition lies on no grid.
    # Nor do integers that stay such, as indices; others count as the real values that they are.
    is_real = "float" in node.outputs[0].dtype or all("float" in x.dtype for x in values)
    chooses = type(node.layer).__name__ in ("Cast", "Where")
    return is_real and bool(values or chooses)


def _as_masked(operand: Any) -> Any:
    """An operand; of a constant that is minus infinity in places, what stands for that."""
    if symbolic(operand) or isinstance(operand, keras.Variable):
        return operand
    value = np.asarray(keras.ops.convert_to_numpy(operand))
    return np.maximum(value, np.float32(MASKED)) if np.isneginf(value).any() else operand


def _binary(
    layer: type,
    scale: Callable[[Any, Any], Scaled | None],
    second: Callable[[np.ndarray, keras.KerasTensor], np.ndarray] | None = None,
) -> Callable:
    """An operation of two tensors: a layer, or a scale where one of them is constant.

    `second` says what a second operand stands for that is constant, beside the tensor.
    """

    def make(node: Node, args: tuple, options: dict) -> Equal | None:
        x, y = args
        if len(symbolic((x, y))) == 2:
            return layer(**options), [x, y]
        tensor = symbolic((x, y))[0]
        values = [None if v is tensor else products.value(v) for v in (x, y)]
        if second is not None and values[1] is not None:
            values[1] = second(values[1], tensor)
        constants = [None if v is None else _constant(v, tensor) for v in values]
        # A scale a channel makes gains exact, and is one operator; as a tensor of their own they
        # are rounded to one grid.
        found = None if all(v is None for v in constants) else scale(*constants)
        if found is not None:
            return found, tensor
        trainable = any(map(products.is_learned, args))
        both = [tensor if v is None else _tensor(v, trainable, tensor, options) for v in values]
        if any(v is None for v in both):
            return None
        return layer(**options), both

    return make


def _as_bias(value: np.ndarray, tensor: keras.KerasTensor) -> np.ndarray:
    """A second operand of a sum, of the shape along which Keras adds it.

    On TensorFlow `keras.ops.add` takes what squeezes to a vector, as (5, 1) does, for a bias: along
    the last axis of `tensor` if that is as long, or else the second one.
    """
    if value.ndim < 2 or np.squeeze(value).ndim != 1 or len(tensor.shape) < 2:
        return value
    if value.size == tensor.shape[-1]:
        return value.reshape(-1)
    if value.size == tensor.shape[1]:
        return value.reshape(-1, *(1,) * (len(tensor.shape) - 2))
    return value


def _constant(value: np.ndarray, tensor: keras.KerasTensor) -> np.ndarray | None:
    """A constant operand: a scalar, or a value for each channel of `tensor`."""
    if value.size == 1:
        return value.reshape(())
    # What has more axes than the tensor would give it more by broadcasting.
    is_last = value.size == value.shape[-1] == tensor.shape[-1] and value.ndim <= len(tensor.shape)
    return value.reshape(-1) if is_last else None


def _tensor(
    value: np.ndarray, trainable: bool, tensor: keras.KerasTensor, options: dict
) -> keras.KerasTensor | None:
    """A constant operand as a tensor of its own: with a value for each place of a sample."""
    rank = len(tensor.shape)
    if value.ndim == rank and value.shape[0] == 1:
        value = value[0]  # One sample, for any number of them.
    shape = (1,) * (rank - 1 - value.ndim) + value.shape
    fits = all(n == m or 1 in (n, m) for n, m in zip(shape, tensor.shape[1:], strict=False))
    if len(shape) != rank - 1 or not fits or "int" in tensor.dtype:
        return None
    layer = Constant(
        shape, **options | {"name": f"{options['name']}_constant"}, constant=not trainable
    )
    # A layer of a Functional model must be called on something; this one does not look at it.
    output = layer(tensor)
    layer.set_weights([value.reshape(shape)])
    return output


def _sum(x: Any, y: Any) -> Scaled:
    return np.float32(1.0), y if x is None else x


def _difference(x: Any, y: Any) -> Scaled:
    return (np.float32(1.0), -y) if x is None else (np.float32(-1.0), x)


def _product(x: Any, y: Any) -> Scaled:
    return y if x is None else x, np.float32(0.0)


def _divide(node: Node, args: tuple, options: dict) -> Equal | None:
    numerator, x = args
    if not symbolic(numerator) and np.size(numerator) == 1 and np.all(np.asarray(numerator) == 1.0):
        return Function("reciprocal", **options), x
    if symbolic(x):
        return _binary(Divide, _never)(node, args, options)
    if np.any(products.value(x) == 0.0):
        return None
    return _binary(L.Multiply, _product, _inverse)(node, args, options)


def _inverse(value: np.ndarray, tensor: keras.KerasTensor) -> np.ndarray:
    del tensor
    return 1.0 / value


def _never(x: Any, y: Any) -> None:
    del x, y


def _maximum(node: Node, args: tuple, options: dict) -> Equal | None:
    # A ReLU is fused into the layer before it. A variable may not stay 0.
    for x, other in (args, args[::-1]):
        is_constant = not symbolic(other) and not isinstance(other, keras.Variable)
        is_of_shape = symbolic(x) and node.output.shape == x.shape
        if is_of_shape and is_constant and np.all(np.asarray(other) == 0.0):
            return L.ReLU(**options), x
    return _binary(L.Maximum, _never)(node, args, options)


def _activation(name: str) -> Callable:
    def make(node: Node, args: tuple, options: dict) -> Equal:
        del node
        return L.Activation(name, **options), args[0]

    return make


def _layer(layer: type, **attributes: str) -> Callable:
    """A layer whose arguments are attributes of the operation."""

    def make(node: Node, args: tuple, options: dict) -> Equal:
        found = {key: getattr(node.layer, name) for key, name in attributes.items()}
        return layer(**found, **options), args[0]

    return make


def _function(name: str, *attributes: str) -> Callable:
    """A function of each value alone; `attributes` of the operation are its arguments."""

    def make(node: Node, args: tuple, options: dict) -> Equal:
        arguments = {key: getattr(node.layer, key) for key in attributes}
        return Function(name, arguments, **options), args[0]

    return make


def _leaky_relu(node: Node, args: tuple, options: dict) -> Equal:
    slope = node.layer.negative_slope
    if slope < 0.0:  # Which the layer does not have.
        return Function("leaky_relu", {"negative_slope": slope}, **options), args[0]
    return L.LeakyReLU(slope, **options), args[0]


def _filled(node: Node, args: tuple, options: dict) -> Equal | None:
    """A tensor of one value, of the shape of another one."""
    del options
    values = {"ZerosLike": 0.0, "OnesLike": 1.0}
    value: Any = values.get(type(node.layer).__name__, args[1] if len(args) > 1 else None)
    if value is None or symbolic(value) or np.ndim(value) > 0 or not np.isfinite(value):
        return None
    is_float = node.outputs[0].dtype == node.inputs[0].dtype == "float32"
    return ((np.float32(0.0), np.float32(value)), args[0]) if is_float else None


def _power(node: Node, args: tuple, options: dict) -> Equal | None:
    x, exponent = args
    if symbolic(exponent) or not symbolic(x):
        return None
    # 1, even of NaN; where it is longer than x, that is broadcast.
    if np.all(np.asarray(exponent) == 0.0) and node.outputs[0].shape == x.shape:
        return (np.float32(0.0), np.float32(1.0)), x
    if np.size(exponent) != 1:
        return None
    return Function("power", {"x2": float(np.reshape(exponent, ()))}, **options), x


def _same(node: Node, args: tuple, options: dict) -> Equal | None:
    if args[0].dtype == "bool" and "float" in node.outputs[0].dtype:
        return _where(node, (args[0], 1.0, 0.0), options)
    if "float" in args[0].dtype and node.outputs[0].dtype == "bool":
        return Compare("not_equal", **options), args[0]
    # Here all is float32: between float types a cast is what is left of mixed precision.
    return (L.Identity(**options), args[0]) if "float" in node.outputs[0].dtype else None


def _clip(node: Node, args: tuple, options: dict) -> Equal | None:
    low, high = node.layer.x_min, node.layer.x_max
    if low is None or high is None or symbolic((low, high)):
        return None
    if np.size(low) != 1 or np.size(high) != 1:
        return None
    low, high = (float(np.reshape(v, ())) for v in (low, high))
    if low == 0.0 and high > 0.0:  # Which is fused into the layer before it.
        return L.ReLU(high, **options), args[0]
    return Function("clip", {"x_min": low, "x_max": high}, **options), args[0]


def _reshape(node: Node, args: tuple, options: dict) -> Equal | None:
    # Layers leave the axis of the samples alone.
    shape, before = node.output.shape, node.inputs[0].shape
    if shape[0] != before[0] or None in shape[1:] or np.prod(shape[1:]) != np.prod(before[1:]):
        return None
    return L.Reshape(shape[1:], **options), args[0]


def _transpose(node: Node, args: tuple, options: dict) -> Equal | None:
    rank = len(node.inputs[0].shape)
    axes = node.layer.axes or tuple(reversed(range(rank)))
    axes = [axis % rank for axis in axes]
    # Permute counts axes from 1, and moves none to where the samples are.
    return (L.Permute(axes[1:], **options), args[0]) if axes[0] == 0 else None


def _compare(function: str) -> Callable:
    """A comparison of two tensors, or of a tensor and constants."""
    turned = function.replace("greater", "LESS").replace("less", "greater").lower()

    def make(node: Node, args: tuple, options: dict) -> Equal | None:
        x, y = args
        if len(symbolic((x, y))) == 2:
            return Compare(function, **options), [x, y]
        constant, tensor = (y, x) if symbolic(x) else (x, y)
        if isinstance(constant, keras.Variable):
            return None
        own = function if symbolic(x) else turned
        return Compare(own, products.value(constant).tolist(), **options), tensor

    return make


def _where(node: Node, args: tuple, options: dict) -> Equal | None:
    """A choice between tensors, or a tensor and constants that are finite, as codes are."""
    condition, *values = args
    if len(values) != 2:
        return None
    # Constants are called on any tensor.
    tensor, *_ = [*symbolic(values), condition]
    if not symbolic(condition):
        condition = _constant_condition(condition, tensor, options)
    if condition is None or condition.dtype != "bool":
        return None
    names = (options["name"], f"{options['name']}_else")
    both = [
        x if symbolic(x) else _finite(x, tensor, options | {"name": name})
        for x, name in zip(values, names, strict=True)
    ]
    return None if any(x is None for x in both) else (Select(**options), [condition, *both])


def _constant_condition(
    constant: Any, tensor: keras.KerasTensor, options: dict
) -> keras.KerasTensor | None:
    """A constant condition, as one on a tensor of 0 and 1."""
    values = (products.value(constant) != 0.0).astype(np.float32)
    own = options | {"name": f"{options['name']}_condition"}
    found = _tensor(values, False, tensor, own)
    return None if found is None else Compare("greater", 0.5, **own)(found)


def _finite(constant: Any, tensor: keras.KerasTensor, options: dict) -> keras.KerasTensor | None:
    """`_tensor`, where no value is infinite."""
    value = products.value(constant)
    if not np.isfinite(value).all():
        return None
    return _tensor(value, products.is_learned(constant), tensor, options)


def _along_last(function: str) -> Callable:
    """An activation along the last axis, which layers have of no other."""

    def make(node: Node, args: tuple, options: dict) -> Equal | None:
        is_last = node.layer.axis in (-1, len(node.output.shape) - 1)
        return (L.Activation(function, **options), args[0]) if is_last else None

    return make


def _normalize(node: Node, args: tuple, options: dict) -> Equal | None:
    """Vectors over their lengths; those shorter than Keras's epsilon are 0 in codes."""
    layer, x = node.layer, args[0]
    epsilon = keras.config.epsilon() if layer.epsilon is None else layer.epsilon
    if layer.order != 2 or epsilon > keras.config.epsilon() or layer.axis is None:
        return None
    made = L.UnitNormalization(layer.axis, **options)
    return (made, x) if fits.vectors_fit(made, x) else None


def _concatenate(node: Node, args: tuple, options: dict) -> Equal | None:
    is_all = len(symbolic(args[0])) == len(args[0])
    return (L.Concatenate(node.layer.axis, **options), args[0]) if is_all else None


# Operations on each value alone that have no arguments, and their functions.
FUNCTIONS = {
    "Abs": "abs",
    "Absolute": "abs",
    "Arcsinh": "arcsinh",
    "Arctan": "arctan",
    "Cbrt": "cbrt",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp2": "exp2",
    "Expm1": "expm1",
    "Floor": "floor",
    "HardTanh": "hard_tanh",
    "Log": "log",
    "Log10": "log10",
    "Log1p": "log1p",
    "Log2": "log2",
    "LogSigmoid": "log_sigmoid",
    "Reciprocal": "reciprocal",
    "Rsqrt": "rsqrt",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "SparsePlus": "sparse_plus",
    "SparseSigmoid": "sparse_sigmoid",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "TanhShrink": "tanh_shrink",
    "Trunc": "trunc",
}

_TABLE: dict[str, Callable[[Node, tuple, dict], Equal | None]] = {
    "Add": _binary(L.Add, _sum, _as_bias),
    "Subtract": _binary(L.Subtract, _difference),
    "Multiply": _binary(L.Multiply, _product),
    "Divide": _divide,
    "TrueDivide": _divide,
    "Maximum": _maximum,
    "Minimum": _binary(L.Minimum, _never),
    "Negative": lambda node, args, options: ((np.float32(-1.0), np.float32(0.0)), args[0]),
    "Square": lambda node, args, options: (L.Multiply(**options), [args[0], args[0]]),
    "Relu": _activation("relu"),
    "Relu6": _activation("relu6"),
    "ReLU": _layer(
        L.ReLU, negative_slope="negative_slope", max_value="max_value", threshold="threshold"
    ),
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Silu": _activation("silu"),
    "HardSilu": _activation("hard_silu"),
    "HardSigmoid": _activation("hard_sigmoid"),
    "Exp": _activation("exponential"),
    "Gelu": _layer(Gelu, approximate="approximate"),
    "Elu": _layer(L.ELU, alpha="alpha"),
    "LeakyRelu": _leaky_relu,
    "Softmax": _layer(L.Softmax, axis="axis"),
    "LogSoftmax": _along_last("log_softmax"),
    "Glu": _along_last("glu"),
    "Normalize": _normalize,
    "LayerNorm": normalization.layer_operation,
    "RMSNorm": normalization.rms_operation,
    "Clip": _clip,
    "Identity": _same,
    "Cast": _same,
    "Copy": _same,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "ExpandDims": _reshape,
    "Ravel": _reshape,
    "Transpose": _transpose,
    "Concatenate": _concatenate,
    "Conv": windows.convolution(windows.conv),
    "DepthwiseConv": windows.convolution(windows.depthwise_conv),
    "SeparableConv": windows.convolution(windows.separable_conv),
    "ConvTranspose": windows.convolution(windows.conv_transpose),
    "AveragePool": windows.pooling(L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
    "MaxPool": windows.pooling(L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D),
    "Resize": windows.resize,
    "Einsum": products.einsum,
    "Matmul": products.matmul,
    "Power": _power,
    "OnesLike": _filled,
    "ZerosLike": _filled,
    "FullLike": _filled,
    "Selu": _function("selu"),
    "Celu": _function("celu", "alpha"),
    "HardShrink": _function("hard_shrink", "threshold"),
    "SoftShrink": _function("soft_shrink", "threshold"),
    "Threshold": _function("threshold", "threshold", "default_value"),
    "Round": _function("round", "decimals"),
    "Squareplus": _function("squareplus", "b"),
    **{name: _function(function) for name, function in FUNCTIONS.items()},
    **{name: _compare(function) for name, function in COMPARISONS.items()},
    "Where": _where,
    "Sum": axes.reduction(Sum),
    "Mean": axes.reduction(Mean),
    "Max": axes.reduction(Max),
    "Amax": axes.reduction(Max),
    "Min": axes.reduction(Min),
    "Amin": axes.reduction(Min),
    "Var": axes.reduction(Variance),
    "Std": axes.reduction(Deviation),
    "Norm": axes.norm,
    "Stack": axes.stack,
    "Take": axes.take,
    "Pad": axes.pad,
    "Argmax": axes.place(ArgMax),
    "Argmin": axes.place(ArgMin),
}
