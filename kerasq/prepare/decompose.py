"""One operation a layer: what stands for several integer kernels becomes several layers."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import registry
from kerasq.layer_rules import FUNCTIONS
from kerasq.layers import Constant, Function, Scale
from kerasq.prepare import attention, operations
from kerasq.prepare import batch_norm as batch_norms

L = keras.layers


def decompose(graph: graphs.Graph, keep: frozenset[str] = frozenset()) -> graphs.Graph:
    """Returns an equal graph in which no layer stands for two integer kernels.

    - A layer with a kernel and an activation becomes two: "<name>" and its ReLU, "<name>_relu"
      (quantization merges them again), or "<name>_linear" and the activation, which keeps the
      name, so that outputs of the model keep theirs.
    - Operators and functions of `keras.ops` become layers.
    - Layers whose rule in the registry says `Output.DECOMPOSED` become those parts: see `PARTS`.
    - A BatchNormalization that cannot be folded becomes `kerasq.layers.Scale`.

    Where a layer has such a name already, the new one gets a number behind it.

    Args:
        graph: what `kerasq.graph.read` returned; it is not changed.
        keep: names of the layers that stay as they are.
    """
    graph = _Decomposition(graph, keep).run()
    merged = {id(norm) for _, norm in batch_norms.pairs(graph)}
    alone = frozenset(
        node.layer.name
        for node in graph.nodes
        if isinstance(node.layer, L.BatchNormalization)
        and id(node) not in merged
        and node.layer.name not in keep
    )
    return _Decomposition(graph, keep, alone).run() if alone else graph


class _Decomposition:
    """The pass over one graph."""

    def __init__(
        self, graph: graphs.Graph, keep: frozenset[str], alone: frozenset[str] = frozenset()
    ) -> None:
        self.graph = graph
        self.keep = keep
        self.alone = alone
        self.names: set[str] = set()

    def run(self) -> graphs.Graph:
        """The new graph."""
        return graphs.transform(self.graph, self._replace)

    def _replace(self, node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        layer = node.layer
        if layer.name in self.keep or registry.copies(layer):
            return graphs.copy_call(layer, *args, **kwargs)
        if not isinstance(layer, keras.Layer):
            equal = operations.equal(node, *args, name=layer.name)
            assert equal is not None  # What has none is among `keep`.
            made, x = equal
            if isinstance(made, tuple):
                variables = [v for v in args if isinstance(v, keras.Variable)]
                trainable = any(v.trainable for v in variables)
                gain, shift = made
                return self.scale(layer.name, x, gain, shift, trainable=trainable)
            return self.call(made, x)
        if layer.name in self.alone:
            gain, shift = batch_norms.gain_and_bias(layer, None)
            return self.scale(layer.name, args[0], gain, shift, trainable=layer.trainable)
        rule, activation = registry.find(layer), registry.activation_name(layer)
        if rule is not None and rule.kernel is not None and activation != "linear":
            changes = {"activation": "linear", "name": self.name(layer.name, "linear")}
            if activation.startswith("relu"):
                changes["name"] = layer.name
            y = self.copy(layer, args, kwargs, **changes)
            name = layer.name
            if activation.startswith("relu"):
                name = self.name(layer.name, activation)
            return self.call(L.Activation(layer.activation, name=name, dtype="float32"), y)
        return self.copy(layer, args, kwargs)

    def name(self, name: str, suffix: str) -> str:
        """A name for a part of the layer `name`."""
        found = self.graph.free_name(f"{name}_{suffix}", self.names)
        self.names.add(found)
        return found

    def copy(self, layer: keras.Layer, args: tuple, kwargs: dict, **changes: Any) -> Any:
        """Calls a copy of a layer, weights included, or its parts."""
        y = self._in_parts(layer, changes.get("name", layer.name), *args)
        return graphs.copy_call(layer, *args, changes=changes, **kwargs) if y is None else y

    def call(self, layer: keras.Layer, x: Any, weights: list[Any] | None = None) -> Any:
        """Calls a new layer, or its parts; `weights` are its weights."""
        y = self._in_parts(layer, layer.name, x)
        if y is None:
            y = layer(x)
            if weights is not None:
                layer.set_weights(weights)
        return y

    def _in_parts(self, layer: keras.Layer, name: str, *args: Any) -> Any:
        make = PARTS.get(type(layer))
        return make and make(self, layer, name, *args)

    def scale(self, name: str, x: Any, gain: Any, shift: Any, trainable: bool = False) -> Any:
        """`gain * x + shift` along the last axis."""
        layer = Scale(name=name, trainable=trainable, dtype="float32")
        shape = (x.shape[-1],)
        return self.call(layer, x, [np.broadcast_to(np.asarray(v), shape) for v in (gain, shift)])


def _two_by_two(parts: _Decomposition, layer: keras.Layer, name: str, x: list) -> Any:
    """Of n inputs: n - 1 layers of two, "<name>_1", "<name>_2", ..., "<name>"."""
    if len(x) < 3:
        return x[0] if len(x) == 1 else None
    total, *rest, last = x
    for i, term in enumerate(rest, start=1):
        own = parts.name(name, str(i))
        total = parts.call(type(layer)(name=own, dtype="float32"), [total, term])
    return parts.call(type(layer)(name=name, dtype="float32"), [total, last])


def _average(parts: _Decomposition, layer: keras.Layer, name: str, x: list) -> Any:
    """Sum, "<name>_sum", and Scale."""
    del layer
    total = parts.call(L.Add(name=parts.name(name, "sum"), dtype="float32"), x)
    return parts.scale(name, total, 1.0 / len(x), 0.0)


def _pool_everything(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """The average of one pixel: Reshape."""
    size, channels = x.shape[1:-1], x.shape[-1]
    if None in size:
        raise ValueError(
            "The image size must be known, because the exported model has fixed shapes. "
            f"Received: {name!r} ({type(layer).__name__}) on an input of shape {x.shape}. "
            "Build the model with a fixed `keras.Input(shape=...)`."
        )
    if np.prod(size) > 1:
        return None
    shape = (*(1 for _ in size), channels) if layer.keepdims else (channels,)
    return L.Reshape(shape, name=name, dtype="float32")(x)


def _pool_3d(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """Pooling of depth and height, rows of pixels as channels, then of width: "<name>_width"."""
    pool = L.MaxPooling2D if isinstance(layer, L.MaxPooling3D) else L.AveragePooling2D
    depth, height, width, channels = x.shape[1:]

    def reshaped(x: Any, shape: tuple, own: str) -> Any:
        return L.Reshape(shape, name=own, dtype="float32")(x)

    def pooled(x: Any, size: tuple, strides: tuple, suffix: str) -> Any:
        own = parts.name(name, suffix)
        return pool(size, strides, layer.padding, name=own, dtype="float32")(x)

    x = reshaped(x, (depth, height, width * channels), parts.name(name, "rows"))
    x = pooled(x, layer.pool_size[:2], layer.strides[:2], "planes")
    depth, height = x.shape[1:3]
    x = reshaped(x, (depth * height, width, channels), parts.name(name, "columns"))
    x = pooled(x, (1, layer.pool_size[2]), (1, layer.strides[2]), "width")
    return reshaped(x, (depth, height, x.shape[2], channels), name)


def _separable(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """DepthwiseConv, "<name>_depthwise", and Conv of one pixel."""
    wide = isinstance(layer, L.SeparableConv2D)
    first, second = (L.DepthwiseConv2D, L.Conv2D) if wide else (L.DepthwiseConv1D, L.Conv1D)
    options = {"dtype": "float32", "trainable": layer.trainable}
    depthwise = first(
        layer.kernel_size if wide else layer.kernel_size[0],
        strides=layer.strides if wide else layer.strides[0],
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate if wide else layer.dilation_rate[0],
        data_format=layer.data_format,
        use_bias=False,
        name=parts.name(name, "depthwise"),
        **options,
    )
    point = second(layer.filters, 1, use_bias=layer.use_bias, name=name, **options)
    kernel, *others = layer.get_weights()
    return parts.call(point, parts.call(depthwise, x, [kernel]), others)


def _grouped(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """A convolution with a group for each channel: DepthwiseConv."""
    channels = x.shape[-1]
    if layer.groups != channels or channels == 1:
        return None
    wide = isinstance(layer, L.Conv2D)
    depthwise = (L.DepthwiseConv2D if wide else L.DepthwiseConv1D)(
        layer.kernel_size if wide else layer.kernel_size[0],
        strides=layer.strides if wide else layer.strides[0],
        padding=layer.padding,
        depth_multiplier=layer.filters // channels,
        dilation_rate=layer.dilation_rate if wide else layer.dilation_rate[0],
        use_bias=layer.use_bias,
        name=name,
        dtype="float32",
        trainable=layer.trainable,
    )
    kernel, *others = layer.get_weights()
    shape = (*layer.kernel_size, channels, layer.filters // channels)
    return parts.call(depthwise, x, [kernel.reshape(shape), *others])


def _prelu(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """`relu(x) + alpha * (x - relu(x))`: "<name>_relu", "<name>_rest", "<name>_slope" and Add."""
    own = {part: parts.name(name, part) for part in ("relu", "rest", "slope")}
    above = parts.call(L.ReLU(name=own["relu"], dtype="float32"), x)
    below = parts.call(L.Subtract(name=own["rest"], dtype="float32"), [x, above])
    (alpha,) = layer.get_weights()
    if alpha.size == alpha.shape[-1]:
        below = parts.scale(own["slope"], below, np.ravel(alpha), 0.0, trainable=layer.trainable)
    else:
        options = {"trainable": layer.trainable, "dtype": "float32"}
        constant = Constant(alpha.shape, name=parts.name(name, "alpha"), **options)
        slopes = parts.call(constant, x, [alpha])
        below = parts.call(L.Multiply(name=own["slope"], dtype="float32"), [below, slopes])
    return parts.call(L.Add(name=name, dtype="float32"), [above, below])


def _rescaling(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """Scale."""
    return parts.scale(name, x, layer.scale, layer.offset)


def _normalization(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """Scale: `(x - mean) / max(sqrt(variance), epsilon)`."""
    mean, deviation = np.ravel(layer.mean), np.sqrt(np.ravel(layer.variance))
    if layer.invert:
        return parts.scale(name, x, deviation, mean)
    gain = 1.0 / np.maximum(deviation, keras.config.epsilon())
    return parts.scale(name, x, gain, -mean * gain)


def _sloped(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """ReLU with a slope: LeakyReLU; with a threshold, or a slope and a limit: Function."""
    arguments = {key: getattr(layer, key) for key in ("negative_slope", "max_value", "threshold")}
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        return parts.call(Function("relu", arguments, name=name, dtype="float32"), x)
    if layer.negative_slope == 0.0:
        return None
    return parts.call(L.LeakyReLU(layer.negative_slope, name=name, dtype="float32"), x)


def _softmax(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """Softmax over another axis than the last: between two Permute, "<name>_last" and "<name>"."""
    rank = len(x.shape)
    axis = layer.axis % rank
    if axis == rank - 1:
        return None
    order = [*(i for i in range(1, rank) if i != axis), axis]
    x = L.Permute(order, name=parts.name(name, "last"), dtype="float32")(x)
    y = L.Softmax(name=parts.name(name, "probabilities"), dtype="float32")(x)
    return L.Permute([1 + order.index(i) for i in range(1, rank)], name=name, dtype="float32")(y)


def _elu(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """ELU of another alpha than 1, which LiteRT's kernel has: Function."""
    if layer.alpha == 1.0:
        return None
    return parts.call(Function("elu", {"alpha": layer.alpha}, name=name, dtype="float32"), x)


def _activation(parts: _Decomposition, layer: keras.Layer, name: str, x: Any) -> Any:
    """silu, hard_silu: the sigmoid, "<name>_sigmoid", and Multiply.

    hard_sigmoid: Scale and ReLU up to 1. LiteRT has HARD_SWISH, but XNNPACK leaves that to the
    interpreter: MobileNetV3 takes 2.8 times as long with it.
    """
    kind = registry.activation_name(layer)
    if kind in ("silu", "hard_silu"):
        own, gate = parts.name(name, "sigmoid"), kind.replace("silu", "sigmoid")
        gate = parts.call(L.Activation(gate, name=own, dtype="float32"), x)
        return parts.call(L.Multiply(name=name, dtype="float32"), [x, gate])
    if kind == "hard_sigmoid":
        y = parts.scale(parts.name(name, "linear"), x, 1.0 / 6.0, 0.5)
        return parts.call(L.ReLU(1.0, name=name, dtype="float32"), y)
    if kind in FUNCTIONS:
        return parts.call(Function(kind, name=name, dtype="float32"), x)
    return None


# By class of a layer: what makes its parts; None where this one has none.
PARTS: dict[type, Callable[..., Any]] = {
    L.Add: _two_by_two,
    L.Multiply: _two_by_two,
    L.Maximum: _two_by_two,
    L.Minimum: _two_by_two,
    L.Average: _average,
    L.GlobalAveragePooling2D: _pool_everything,
    L.GlobalAveragePooling1D: _pool_everything,
    L.GlobalAveragePooling3D: _pool_everything,
    L.AveragePooling3D: _pool_3d,
    L.MaxPooling3D: _pool_3d,
    L.SeparableConv2D: _separable,
    L.SeparableConv1D: _separable,
    L.Rescaling: _rescaling,
    L.Normalization: _normalization,
    L.Conv2D: _grouped,
    L.Conv1D: _grouped,
    L.PReLU: _prelu,
    L.ReLU: _sloped,
    L.ELU: _elu,
    L.Softmax: _softmax,
    L.Attention: attention.attention,
    L.Dot: attention.dot,
    L.EinsumDense: attention.einsum_dense,
    L.GroupQueryAttention: attention.heads,
    L.MultiHeadAttention: attention.heads,
    L.TimeDistributed: attention.time_distributed,
    L.Activation: _activation,
}
