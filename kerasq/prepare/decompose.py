"""One operation a layer: what stands for several integer kernels becomes several layers."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import registry
from kerasq.fits import RECURRENT
from kerasq.layer_rules import ADAPTIVE_AVERAGE, ADAPTIVE_MAX
from kerasq.layers import (
    Compare,
    Deviation,
    Divide,
    Einsum,
    Mean,
    Norm,
    Scale,
    Select,
    Sum,
    Variance,
)
from kerasq.prepare import (
    activations,
    arithmetic,
    attention,
    batch_norm,
    convolutions,
    images,
    masks,
    normalization,
    operations,
    pooling,
    products,
    recurrence,
    unit_length,
)
from kerasq.prepare.integers import Integers

L = keras.layers


def decompose(graph: graphs.Graph, keep: frozenset[str] = frozenset()) -> graphs.Graph:
    """Returns an equal graph in which no layer stands for two integer kernels.

    - A layer with a kernel and an activation becomes two: "<name>" and its ReLU, "<name>_relu"
      (quantization fuses them again), or "<name>_linear" and the activation, which keeps the
      name, so that outputs of the model keep theirs.
    - Operators and functions of `keras.ops` become layers.
    - Layers whose rule in the registry says `Output.DECOMPOSED` become those parts: see `PARTS`.

    Where a layer has such a name already, the new one gets a number behind it.

    Args:
        graph: what `kerasq.graph.read` returned; it is not changed.
        keep: names of the layers that stay as they are.
    """
    graph = unit_length.recognize(graph, keep)
    pass_over = _Decomposition(graph, keep)
    return pass_over.noted(graphs.transform(graph, pass_over.call_node))


# They say that they return floats, but of integers they return integers.
_MERGING = (L.Add, L.Average, L.Concatenate, L.Dot, L.Maximum, L.Minimum, L.Multiply, L.Subtract)


class _Decomposition:
    """The pass over one graph, and the `Parts` that functions of `PARTS` get."""

    def __init__(self, graph: graphs.Graph, keep: frozenset[str]) -> None:
        self._graph = graph
        self._keep = keep
        self._names: set[str] = set()  # those of parts
        self._noted: dict[str, dict] = {}  # by name of a part, what `Source` says of it
        self.is_wide = False
        self.feeds_softmax = False
        self._integers = Integers(graph, keep)
        # Of calls that are repeated: by key what the first one has called, and by name of what a
        # call has called, that of the first one. Ranges are those of one call of the user's layer,
        # weights those of all its calls.
        self._firsts: dict[tuple[str, str], list[str]] = {}
        self._ranges: dict[str, str] = {}
        self._weights: dict[str, str] = {}
        self._called: list[str] = []
        # By what is done with variables of the user's own, the first layers that learn them.
        self._tied: dict[tuple, list[str]] = {}
        self._at = ("", "")  # the user's layer: the call at hand, and whose weights it has

    def noted(self, graph: graphs.Graph) -> graphs.Graph:
        """The graph that the pass has made: calls know what they share, and what is noted."""

        def source(node: graphs.Node) -> graphs.Source:
            name = node.layer.name
            return dataclasses.replace(
                node.source,
                weights_of=self._weights.get(name, node.source.weights_of),
                range_of=self._ranges.get(name, ""),
                **self._noted.get(name, {}),
            )

        nodes = [dataclasses.replace(node, source=source(node)) for node in graph.nodes]
        return dataclasses.replace(graph, nodes=nodes)

    @contextlib.contextmanager
    def wide(self) -> Iterator[None]:
        """See `Parts`."""
        before, self.is_wide = self.is_wide, True
        yield
        self.is_wide = before

    def call_node(self, node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        """Calls what a layer, or operation, becomes."""
        layer = node.layer
        self._at = layer.name, node.source.weights_of
        # What only moves values stays an operation where it is one.
        is_moved = registry.passes_through(layer) and type(layer) not in PARTS
        if layer.name in self._keep:
            return self._kept(layer, args, kwargs)
        takes_conditions = type(layer).__name__ in _TAKE_CONDITIONS
        self.feeds_softmax = masks.feeds_softmax(self._graph, node)
        # Some layers say that they return floats of whatever they move.
        stays = is_moved and "float" not in node.outputs[0].dtype
        args, kwargs = self._integers.as_real((args, kwargs), stays, takes_conditions)
        if is_moved:
            return graphs.copy_call(layer, *args, **kwargs)
        if not isinstance(layer, keras.Layer):
            return self._operation(node, args)
        rule = registry.find(layer)
        has_kernel = rule is not None and rule.kernel is not None
        if has_kernel and registry.activation_name(layer) != "linear":
            return self._activated(layer, args, kwargs)
        return self._copy(layer, args, kwargs)

    def _kept(self, layer: Any, args: tuple, kwargs: dict) -> Any:
        """Calls a copy of a layer that stays as it is."""
        # Masks are arguments by now: wrappers would warn of those beside tensors.
        changes = {"mask_zero": False} if type(layer) is L.Embedding else {}
        if isinstance(layer, _MERGING):
            args, kwargs = self._integers.as_real((args, kwargs), False, False)
        return graphs.copy_call(layer, *args, changes=changes, **kwargs)

    def _operation(self, node: graphs.Node, args: tuple) -> Any:
        """Calls the layer that computes what an operation of `keras.ops` does."""
        equal = operations.equal(
            node, *args, name=node.layer.name, feeds_softmax=self.feeds_softmax
        )
        assert equal is not None  # What has none is among those to keep.
        made, x = equal
        arguments = [*enumerate(args), *node.kwargs.items()]
        is_learned = any(products.is_learned(v) for _, v in arguments)
        if isinstance(made, tuple):
            gain, shift = made
            learned = "gain" if type(node.layer).__name__ in _PRODUCTS else "shift"
            y = self.scale(node.layer.name, x, gain, shift, learned if is_learned else "")
        else:
            y = self.call(made, x)
        if is_learned:
            self._tie(node.layer, arguments, graphs.between(graphs.symbolic(args), y))
        return y

    def _tie(self, operation: Any, arguments: list, made: list[graphs.Node]) -> None:
        """Has an operation share the weights that variables became in one just like it before."""
        names = [node.layer.name for node in made]
        options = {k: v for k, v in vars(operation).items() if k[0] != "_" and k != "name"}
        # Such as strides, an equation, an epsilon.
        given = [(key, _identity(v)) for key, v in arguments if not graphs.symbolic(v)]
        key = (type(operation).__name__, len(names), repr(sorted(options.items())), *given)
        self._weights.update(zip(names, self._tied.setdefault(key, names), strict=True))

    def _activated(self, layer: keras.Layer, args: tuple, kwargs: dict) -> Any:
        """Calls a layer with a kernel, and its activation as a layer."""
        name, kind = layer.name, registry.activation_name(layer)
        # A ReLU is fused again, so the name stays with what a user finds in the quantized model.
        is_relu = kind.startswith("relu")
        linear = name if is_relu else self.name(name, "linear")
        own = self.name(name, kind) if is_relu else name
        y = self._copy(layer, args, kwargs, activation="linear", name=linear)
        if isinstance(layer.activation, keras.Layer):  # Such as a LeakyReLU.
            return self.call(graphs.copy_layer(layer.activation, name=own), y)
        return self.call(L.Activation(layer.activation, name=own, dtype="float32"), y)

    def name(self, name: str, suffix: str) -> str:
        """A name for a part of the layer `name` that no layer, and no other part, has."""
        found = self._graph.free_name(f"{name}_{suffix}", self._names)
        self._names.add(found)
        return found

    def _copy(self, layer: keras.Layer, args: tuple, kwargs: dict, **changes: Any) -> Any:
        """Calls a copy of a layer, weights included, or its parts."""
        # Of the other layers, calls that have more than their tensors stay float.
        given = kwargs if type(layer).__name__ in _TAKE_CONDITIONS else {}
        y = self._in_parts(layer, changes.get("name", layer.name), *args, **given)
        return graphs.copy_call(layer, *args, changes=changes, **kwargs) if y is None else y

    def call(
        self, layer: keras.Layer, x: Any, weights: list[Any] | None = None, units: float = 1.0
    ) -> Any:
        """See `Parts`."""
        # Parts can have parts: an average of three is a sum of three, which is two sums.
        y = self._in_parts(layer, layer.name, x)
        if y is None:
            self._called.append(layer.name)
            y = layer(x)
            if self.is_wide:
                self._noted[layer.name] = {"is_wide": True}
            if units != 1.0:
                gain = (units,) * x.shape[-1]
                self._noted.setdefault(layer.name, {})["gain"] = gain
            if isinstance(layer, Scale) and weights is not None:
                layer.assign(*weights)
            elif weights is not None:
                layer.set_weights(weights)
        return y

    def repeated(self, key: str, call: Callable[[], Any]) -> Any:
        """What `call()` returns; calls of one key share weights and ranges, layer by layer."""
        count = len(self._called)
        y = call()
        made = self._called[count:]
        own, weights = self._at
        for names, first in ((self._ranges, f"call {own}"), (self._weights, f"weights {weights}")):
            names.update(zip(made, self._firsts.setdefault((first, key), made), strict=True))
        return y

    def _in_parts(self, layer: keras.Layer, name: str, *args: Any, **kwargs: Any) -> Any:
        make = PARTS.get(type(layer))
        return make and make(self, layer, name, *args, **kwargs)

    def scale(
        self, name: str, x: Any, gain: Any, shift: Any, learned: str = "", trainable: bool = True
    ) -> Any:
        """See `Parts`."""
        if len(x.shape) == 1:
            x = self.call(L.Reshape((1,), name=self.name(name, "channel")), x)
            y = self.scale(self.name(name, "scaled"), x, gain, shift, learned, trainable)
            return self.call(L.Reshape((), name=name), y)
        layer = Scale(**_LEARNED[learned], trainable=trainable, name=name, dtype="float32")
        values = (gain, shift) if layer.use_bias else (gain,)
        shape = (x.shape[-1],)
        return self.call(layer, x, [np.broadcast_to(np.asarray(v), shape) for v in values])


def _identity(argument: Any) -> Any:
    """What tells an argument from others, where it is no tensor: its variable, or its values."""
    if products.is_learned(argument):
        return id(argument)
    return np.asarray(argument).tobytes() if hasattr(argument, "shape") else repr(argument)


# Operations that multiply by what they learn; others add it.
_PRODUCTS = ("Multiply", "Divide", "TrueDivide")
# By what of a Scale is learned, its arguments.
_LEARNED = {"": {"constant": True}, "gain": {"use_bias": False}, "shift": {"constant_gain": True}}

# What takes bool tensors as conditions, not as numbers; by name, since those of operations are
# private to Keras.
_TAKE_CONDITIONS = (
    "Cast",
    "Where",
    "Softmax",
    "GlobalAveragePooling1D",
    "Attention",
    "AdditiveAttention",
    "MultiHeadAttention",
    "GroupedQueryAttention",
    *(layer.__name__ for layer in (*RECURRENT, L.Bidirectional)),
)

# By class of a layer, and of no subclass, whose `call` may be another: what makes its parts from
# `Parts`, the layer, its name and what it is called on. It returns None where this one has none.
PARTS: dict[type, Callable[..., Any]] = {
    L.Add: arithmetic.two_by_two,
    L.Subtract: arithmetic.two_by_two,
    L.Multiply: arithmetic.two_by_two,
    L.Maximum: arithmetic.two_by_two,
    L.Minimum: arithmetic.two_by_two,
    L.Average: arithmetic.average,
    L.Rescaling: arithmetic.rescaling,
    L.Normalization: arithmetic.normalization,
    L.BatchNormalization: batch_norm.along_last,
    L.AveragePooling1D: pooling.average,
    L.AveragePooling2D: pooling.average,
    L.GlobalAveragePooling2D: pooling.pool_everything,
    L.GlobalAveragePooling1D: pooling.pool_everything,
    L.GlobalAveragePooling3D: pooling.pool_everything,
    Mean: pooling.reduce,
    Sum: pooling.reduce,
    Variance: pooling.variance,
    Deviation: pooling.deviation,
    Norm: pooling.norm,
    L.AveragePooling3D: pooling.pool_3d,
    L.MaxPooling3D: pooling.pool_3d,
    **dict.fromkeys((*ADAPTIVE_AVERAGE, *ADAPTIVE_MAX), pooling.adaptive),
    L.CenterCrop: images.center_crop,
    L.Flatten: images.flatten,
    L.Resizing: images.resizing,
    L.SeparableConv2D: convolutions.separable,
    L.SeparableConv1D: convolutions.separable,
    L.Conv2D: convolutions.grouped,
    L.Conv1D: convolutions.grouped,
    L.Conv3D: convolutions.conv_3d,
    L.Conv1DTranspose: convolutions.transposed,
    L.Conv2DTranspose: convolutions.transposed,
    L.Conv3DTranspose: convolutions.transposed,
    L.Masking: masks.masking,
    L.PReLU: activations.prelu,
    L.ReLU: activations.sloped,
    L.ELU: activations.elu,
    L.Softmax: activations.softmax,
    L.UnitNormalization: normalization.unit_norm,
    L.LayerNormalization: normalization.layer_norm,
    L.RMSNormalization: normalization.rms_norm,
    L.GroupNormalization: normalization.group_norm,
    Select: masks.select,
    Divide: arithmetic.divide,
    Compare: arithmetic.compare,
    L.Activation: activations.activation,
    L.Attention: attention.attention,
    L.AdditiveAttention: attention.attention,
    L.MultiHeadAttention: attention.heads,
    L.GroupQueryAttention: attention.heads,
    L.EinsumDense: attention.einsum_dense,
    L.Dot: attention.dot,
    Einsum: attention.einsum,
    L.TimeDistributed: attention.time_distributed,
    **dict.fromkeys(RECURRENT, recurrence.recurrent),
    L.Bidirectional: recurrence.bidirectional,
}
