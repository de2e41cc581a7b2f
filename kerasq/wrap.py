"""Wrapping: a quantized model from a plan, with a wrapper around every layer that computes."""

import dataclasses
import re
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import one_grid, registry
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.layers import IN_FRONT, Compare, Constant, Requantize, Scale, SequenceLSTM
from kerasq.lstm_wrapper import LstmWrapper
from kerasq.plan import Call, Kind, Plan
from kerasq.quantizers.activations import ActivationQuantizer
from kerasq.quantizers.structure import clusters_of
from kerasq.scales import FREE
from kerasq.scheme import FLOAT_BITS
from kerasq.wrappers import Boundary, CompareCodes, QuantizeWrapper, quantized_by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernels:
    """How kernels are quantized.

    Attributes:
        weights: how weights of fewer than 8 bits lie on codes.
        granularity: what of a kernel shares a scale: "per_channel" or "per_tensor".
        keep_zeros: whether weights that are 0 stay 0.
        keep_clusters: whether weights that are equal, in a clustered kernel, stay equal.
    """

    weights: Any
    granularity: str
    keep_zeros: bool
    keep_clusters: bool


def wrap(
    plan: Plan,
    range_gradient: str | None,
    kernels: Kernels,
    scales: str = FREE,
    range_penalty: float = 0.0,
) -> keras.Model:
    """Builds the quantized model that a plan describes.

    Args:
        plan: the records of the decomposed graph.
        range_gradient: how ranges learn: "lsq", "clip", "none", or None: by width.
        kernels: how kernels are quantized.
        scales: which scales are powers of two, see `kerasq.scales`.
        range_penalty: L2 penalty on the ends of ranges that learn.
    """
    ranges = {"range_gradient": range_gradient, "range_penalty": range_penalty, "scales": scales}
    wrapping = _Wrapping(plan, ranges, kernels)
    model = graphs.rewrite(plan.graph, wrapping.call)
    if apart := wrapping.trained_apart():
        print(f"Train apart, a copy for each call: weights of {', '.join(apart)}.")
    return model


class _Wrapping:
    """Copies of layers, in wrappers, and boundaries where widths change."""

    def __init__(self, plan: Plan, ranges: dict[str, Any], kernels: Kernels) -> None:
        self.plan = plan
        self.graph = plan.graph
        # What all wrappers are told of ranges.
        self.ranges = ranges
        self.kernels = kernels
        # By id of a tensor of the new model, and width: the wrapper, what it returns, the tensor.
        # That is held so that no other gets its id.
        self.boundaries: dict[tuple[int, int], tuple] = {}
        # First calls, by name of the layer whose weights they have (`Source.weights_of`), scheme
        # and shapes.
        self.wrappers: dict[tuple, list[KernelWrapper]] = {}
        # By name of a BatchNormalization's first call, the layers that it is part of.
        self.norms: dict[str, list[str]] = {}
        self.plain: dict[str, keras.Layer] = {}
        # By name of the first layer of the same variable, scheme, shape and width.
        self.constants: dict[tuple, Any] = {}
        # By name of the layer whose range they share (`Source.range_of`), and what must be equal;
        # or by what a concatenation and its inputs share.
        self.quantizers: dict[Any, ActivationQuantizer | None] = {}
        self.one_grid = one_grid.find(plan)

    def call(self, node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        """What stands for a call in the quantized model."""
        layer, call = node.layer, self.plan[node]
        if call.kind is Kind.FUSED:
            return args[0]
        args, kwargs = self._read(node, call, (args, kwargs))
        if call.kind is not Kind.INTEGER:
            y = self._plain(node)(*args, **kwargs)
            if call.kind is not Kind.FLOAT or call.writes == FLOAT_BITS:
                return y
            return self._boundary(y, call.writes, is_input=isinstance(layer, IN_FRONT))
        if not isinstance(layer, Constant) or layer.constant:
            return self._wrapper(node, call)(*args)
        # One variable of the user's is one tensor, whatever it is called on.
        key = (node.source.weights_of, call.scheme, layer.shape, call.writes)
        if key not in self.constants:
            self.constants[key] = self._wrapper(node, call)(*args)
        return self.constants[key]

    def _wrapper(self, node: graphs.Node, call: Call) -> QuantizeWrapper:
        """The wrapper of an integer call."""
        layer, end = node.layer, call.relu or node
        relu, limit = registry.relu_limit(end.layer)
        # Steps of a recurrent layer share ranges, where they are ranges of one kind.
        name = end.source.range_of
        key = self.one_grid.get(id(node), name and (name, call.writes, relu, limit))
        options: dict[str, Any] = {
            "scheme": call.scheme,
            "relu": relu,
            "limit": limit,
            "trainable": self.plan.trains(node),
            "source": node.source.name,
            "output_bits": call.writes,
            "target": self.plan.target,
            "output_quantizer": self.quantizers.get(key) if key else None,
            **self.ranges,
        }
        if registry.rule(layer).kernel is None:
            kind: type[QuantizeWrapper] = QuantizeWrapper
            if isinstance(layer, SequenceLSTM):
                kind, options["keep_zeros"] = LstmWrapper, self.kernels.keep_zeros
            wrapper = kind(graphs.copy_built(layer), **options)
        else:
            wrapper = self._with_kernel(node, call, options)
        if key:
            self.quantizers[key] = wrapper.output_quantizer
        return wrapper

    def _read(self, node: graphs.Node, call: Call, arguments: tuple) -> tuple:
        """The arguments of a call, each tensor at the width that the call reads."""
        places = zip(node.inputs, call.reads, strict=True)

        def one(x: Any) -> Any:
            # The float model's own variables stay its own. Layers take theirs along.
            if isinstance(x, keras.Variable) and not isinstance(node.layer, keras.Layer):
                return x.numpy()
            if not isinstance(x, keras.KerasTensor):
                return x
            source, bits = next(places)
            is_input = isinstance(graphs.origin(x)[0], keras.layers.InputLayer)
            width = self.plan.width(source)
            # An Embedding reads indices, as floats too.
            if is_input and width != FLOAT_BITS and not _reads_indices(node.layer):
                x = self._boundary(x, width, is_input=True)
            return x if bits in (width, FLOAT_BITS) else self._boundary(x, bits)

        return keras.tree.map_structure(one, arguments)

    def _boundary(self, x: keras.KerasTensor, bits: int, is_input: bool = False) -> Any:
        """A tensor behind its one boundary of that width."""
        if (id(x), bits) not in self.boundaries:
            suffix = "quantize" if is_input else f"int{bits}"
            taken = {wrapper.name for wrapper, *_ in self.boundaries.values()}
            maker, read = graphs.origin(x)
            if isinstance(maker, IN_FRONT):
                maker, _ = graphs.origin(read[0])
            name = f"{_legal(maker.name)}_{suffix}"
            wrapper = Boundary(
                bits,
                is_input=is_input,
                name=self.graph.free_name(name, taken),
                target=self.plan.target,
                trainable=_trains(x),
                **self.ranges,
            )
            self.boundaries[id(x), bits] = (wrapper, wrapper(x), x)
        return self.boundaries[id(x), bits][1]

    def _with_kernel(self, node: graphs.Node, call: Call, options: dict) -> KernelWrapper:
        """The wrapper of a layer with a kernel; of a further call, on the first one's weights."""
        layer = node.layer
        options["training_dtype"] = node.source.training_dtype
        # Such as that of a nested model that is called with `training=False`.
        behind = {} if call.batch_norm is None else call.batch_norm.kwargs
        options["fixed_batch_norm"] = behind.get("training") is False
        # One slope of a PReLU is one for each channel here, of which calls may have other numbers.
        # Frames are those of a 3D convolution, on images of one size.
        shapes = (tuple(w.shape) for w in layer.weights)
        key = (node.source.weights_of, call.scheme, *shapes, *getattr(layer, "frames", ()))
        gain = node.source.gain
        calls = self.wrappers.setdefault(key, [])
        first = next((x for x in calls if _is_of_one_weight(x, layer, gain)), None)
        # In units of its own, as of a normalization over images of another size.
        options["gain_per_channel"] = bool(gain) and (first is None or gain != first.first_gain)
        if first is not None:
            wrapper = KernelWrapper.sharing(first, name=layer.name, **options)
        else:
            norm, kernel = self._norm(call), _in_units(graphs.copy_built(layer), gain)
            wrapper = KernelWrapper(
                kernel, batch_norm=norm, **options, **self._kernel_options(kernel)
            )
            calls.append(wrapper)
        wrapper.first_gain = gain or 1.0
        # Built here, while it is known what its gain begins with.
        wrapper.build(layer.input.shape)
        return wrapper

    def _norm(self, call: Call) -> keras.Layer | None:
        """A copy of the BatchNormalization that stays trainable behind a kernel."""
        if call.batch_norm is None:
            return None
        source = call.batch_norm.source
        self.norms.setdefault(source.weights_of, []).append(source.name)
        return graphs.copy_built(call.batch_norm.layer)

    def trained_apart(self) -> list[str]:
        """Names of the layers whose weights have become several.

        As of calls on other sizes, and of a BatchNormalization behind several kernels.
        """
        copies: dict[str, list[KernelWrapper]] = {}
        for (weights_of, *_), wrappers in self.wrappers.items():
            copies.setdefault(weights_of, []).extend(wrappers)
        several = [x[0] for x in copies.values() if len(x) > 1 and x[0].layer.trainable_weights]
        names = [wrapper.source for wrapper in several]
        names += [names[0] for names in self.norms.values() if len(names) > 1]
        return [*dict.fromkeys(map(repr, names))]

    def _kernel_options(self, layer: keras.Layer) -> dict[str, Any]:
        """Arguments of a KernelWrapper, of a layer with its weights."""
        kernels, rule = self.kernels, registry.rule(layer)
        options = {"weights": kernels.weights, "granularity": kernels.granularity}
        # Constants and statistics are no weights.
        if isinstance(layer, Scale):
            return options
        flat = rule.flatten(getattr(layer, str(rule.kernel)).value)
        clusters = clusters_of(flat.numpy()) if kernels.keep_clusters else None
        options["clusters"] = 0 if clusters is None else int(clusters.max()) + 1
        return options | {"keep_zeros": kernels.keep_zeros}

    def _plain(self, node: graphs.Node) -> keras.Layer:
        """A copy of a layer that is not wrapped, one for all its calls where it has weights."""
        if isinstance(node.layer, Requantize):  # Of values that have their grid already.
            return keras.layers.Identity(name=node.layer.name, dtype="float32")
        if isinstance(node.layer, Compare):
            return CompareCodes(**graphs.configuration(node.layer))
        if not getattr(node.layer, "weights", None):
            return graphs.copy_layer(node.layer)
        name = node.source.weights_of
        if name not in self.plain:
            self.plain[name] = graphs.copy_built(node.layer, name=name)
        return self.plain[name]


def _in_units(layer: keras.Layer, gain: tuple[float, ...]) -> keras.Layer:
    """The layer with its kernel divided by the units that it trains in (`Source.gain`)."""
    if gain:
        rule = registry.rule(layer)
        variable = getattr(layer, str(rule.kernel))
        variable.assign(rule.unflatten(rule.flatten(variable.value) / gain, variable.shape))
    return layer


def _is_of_one_weight(first: KernelWrapper, layer: keras.Layer, gain: tuple[float, ...]) -> bool:
    """Whether a call can compute on the weights of another call of the same user's layer.

    Parts of a layer may have constants that depend on what it reads, such as the number of values
    that a normalization divides by: in units of their own they are equal, or else they are two.
    """
    if not isinstance(layer, Scale):
        return True
    # Its range may be that of the kernel times its gain.
    if first.is_folded and (gain or 1.0) != first.first_gain:
        return False
    pairs = [(layer.kernel.numpy() / (gain or 1.0), first.layer.kernel.numpy())]
    if layer.use_bias:
        pairs.append((layer.bias.numpy(), first.layer.bias.numpy()))
    return all(np.allclose(a, b, rtol=1e-5, atol=0.0) for a, b in pairs)


def _trains(x: keras.KerasTensor) -> bool:
    """Whether the range that a tensor lies on may move in training."""
    maker = quantized_by(x)
    return maker is None or maker.trainable


def _reads_indices(layer: keras.Layer) -> bool:
    """Whether a layer takes integers, in whatever type they come."""
    return isinstance(layer, keras.layers.Embedding)


def _legal(name: str) -> str:
    """`name` without what TensorFlow refuses in a name scope."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
