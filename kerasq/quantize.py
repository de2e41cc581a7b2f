"""`quantize_model`: from a float Keras model to one that trains and predicts on integer grids."""

import re
from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import legacy, registry
from kerasq.fake_quant import RANGE_GRADIENTS
from kerasq.litert.operators import OPERATORS, has_int16, multiplies
from kerasq.prepare import batch_norm as batch_norms
from kerasq.prepare import operations
from kerasq.prepare.decompose import decompose
from kerasq.quantizers import weights as weight_quantizers
from kerasq.quantizers.base import WeightQuantizer
from kerasq.scheme import FLOAT_BITS, fitting, per_layer, resolve
from kerasq.wrappers import INPUT_GRADIENT, KernelWrapper, QuantizeWrapper, quantized_by, ranged

BATCH_NORMS = ("fold", "keep")
# What computes something else where there is a mask; recurrent layers keep theirs.
_MASKED = (
    keras.layers.AdditiveAttention,
    keras.layers.Attention,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
    keras.layers.Softmax,
)
# Operators that a ReLU is fused into; any operator on all int8 codes has its clamp at the end.
_FUSING = frozenset(("ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MUL", "SUB"))


def quantize_model(
    model: keras.Model,
    scheme: str = "w8a8",
    *,
    overrides: dict[str, str] | None = None,
    batch_norm: str = "fold",
    range_gradient: str = "lsq",
    weights: str | dict[str, Any] | WeightQuantizer = "uniform",
) -> keras.Model:
    """Returns a copy of `model` that computes as the integer-only model on the device will.

    The copy is a plain Functional model with the same inputs, outputs and order of layers.
    Layers keep their names; BatchNormalization and ReLU become part of the layer before them.
    Train it with `compile` and `fit`, and export it with `kerasq.export_tflite`.

    Args:
        model: a built Keras 3 model: Sequential, Functional, or subclassed where its `call` runs
            on symbolic inputs; or a Sequential or Functional one of `tf_keras`. It is not changed.
            Models inside it are opened; each further call of a layer has the layer's name with a
            number behind, and shares its weights.
        scheme: bits of weights and activations: "w8a8", "w8a16", "w4a8", "w4a16", or "float"; or
            narrower ones, such as "w2a3", which run as int8 codes (`kerasq.scheme`).
            A layer at a16 reads and writes int16; where neighbours differ, a boundary layer
            (`<name>_int8`, `<name>_int16`) with a range of its own becomes one QUANTIZE. A layer
            at "float" stays as it is, BatchNormalization and ReLU behind it included.
        overrides: schemes of layers that differ from `scheme`, by layer name, shell pattern of
            names ("block2_*"), layer class, or a model inside this one. The name of an input gives
            its width.
        batch_norm: "fold" folds BatchNormalization into the kernel before it, which is the
            faster to train; "keep" keeps it trainable and folds it in inference and at export.
        range_gradient: how ranges learn: "lsq" (Esser et al. 2020), "clip" (PACT, Choi et al.
            2018), or "none" (they follow a moving average of the data while training).
        weights: how weights of fewer than 8 bits lie: "uniform", "dorefa" (Zhou S. et al. 2016),
            "power_of_two" (2 to 5 bits: INQ, see `kerasq.IncrementalQuantization`), and at 2 bits
            "ternary" (Li & Liu 2016) or "trained_ternary" (Zhu et al. 2017). Weights of one bit
            are binary (Rastegari et al. 2016). Or a `kerasq.WeightQuantizer`, such as
            `kerasq.Ternary(threshold=0.5)`, of which each kernel gets a copy, or its configuration.

    Returns:
        The quantized model. Its ranges take their first values from `kerasq.calibrate` or from
        the first batches of training.

    Raises:
        ValueError: where `model` is not a built Keras 3 model, has layers that cannot be
            quantized (each is named), or an option is unknown (the legal ones are listed).

    References:
        Jacob et al. 2018 (arXiv 1712.05877); LiteRT 8-bit quantization specification.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> [layer.name for layer in q.layers[2:]]
        ['head']
    """
    if legacy.is_legacy(model):
        model = legacy.rebuild(model)
    if isinstance(model, keras.Model) and ranged(model):
        raise ValueError(
            f"`model` must be a float model. Received: {model.name!r}, which is quantized already. "
            "Quantize the model that it was made from."
        )
    _check_option("batch_norm", batch_norm, BATCH_NORMS)
    _check_option("range_gradient", range_gradient, RANGE_GRADIENTS)
    weight_quantizers.find(weights)
    graph = graphs.read(model, lambda layer: is_closed(layer, overrides))
    layers = {
        x.name: x for x in graph.model.operations if graph.owners.get(x.name, x.name) == x.name
    }
    schemes = per_layer(scheme, overrides, layers, graph.parents)
    schemes |= {name: schemes[owner] for name, owner in graph.owners.items() if owner in schemes}
    clampless = frozenset(
        name for name, own in schemes.items() if resolve(own).activation_bits not in (8, FLOAT_BITS)
    )
    merging = _merging(graph, clampless)
    kernelless = _without_kernel(graph, _asked_float(graph, schemes, merging))
    schemes |= {name: "float" for name, text in kernelless.items() if text}
    floats = _asked_float(graph, schemes, merging) | {*kernelless}
    _check_layers(graph, floats, merging)
    printed = "; ".join(text for text in kernelless.values() if text)
    if printed:
        print(f"Stay in float, for want of an integer kernel: {printed}.")
    wrapping = _Wrapping(decompose(graph, floats), schemes, floats, clampless)
    wrapping.check_overrides({key: fitting(key, layers) for key in overrides or {}})
    quantized = wrapping.run(batch_norm == "fold", range_gradient, weights)
    if not ranged(quantized):
        raise ValueError(
            "At least one layer must be quantized. Received: a model whose layers all stay float "
            f"(scheme={scheme!r}). Give some of them another scheme with `overrides`."
        )
    if "float16" in graph.mixed.values():
        quantized.dtype_policy = "mixed_float16"  # Keras then scales the loss.
    return quantized


def first_and_last(model: keras.Model) -> tuple[str, str]:
    """Names of the first and the last layer with weights that are quantized, in order of calls.

    What networks of few bits keep at 8 (Zhou S. et al. 2016; Choi et al. 2018):
    `overrides=dict.fromkeys(kerasq.first_and_last(model), "w8a8")`.

    Raises:
        ValueError: for a model without such layers.
    """
    graph = graphs.read(legacy.rebuild(model) if legacy.is_legacy(model) else model)
    rules = {node.layer.name: registry.find(node.layer) for node in graph.nodes}
    names = [name for name, rule in rules.items() if rule is not None and rule.kernel]
    if not names:
        raise ValueError(
            "`model` must have layers with weights that are quantized. "
            f"Received: model {model.name!r} without any."
        )
    return graph.owners.get(names[0], names[0]), graph.owners.get(names[-1], names[-1])


def _check_option(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"`{name}` must be one of {list(legal)}. Received: {name}={value!r}.")


def is_closed(layer: keras.Layer, overrides: dict[Any, str] | None = None) -> bool:
    """Whether a layer stays one layer; of others, what their `call` does is quantized.

    Those stay one that Keras has, that have a rule of their own, or that shall stay float.
    """
    if isinstance(layer, (keras.Model, keras.layers.Lambda)):
        return False
    if type(layer).__module__.startswith("keras.src.layers") or registry.find(layer) is not None:
        return True
    named = {layer.name: layer}
    return any(s == "float" and fitting(key, named) for key, s in (overrides or {}).items())


def _without_kernel(graph: graphs.Graph, asked: frozenset[str]) -> dict[str, str]:
    """By name, what to print of layers and operations that LiteRT has no integer kernel for."""
    found = {}
    for node in graph.nodes:
        layer, name = node.layer, node.layer.name
        rule = registry.find(layer)
        if name in asked:
            continue
        if isinstance(layer, keras.Layer):
            is_float = rule is not None and rule.output == "float"
            misfits = (
                rule is not None and rule.fits and not rule.fits(layer, *node.args, **node.kwargs)
            )
            if is_float or misfits:  # What has an operator may become integer at export.
                is_open = rule is not None and is_float and rule.op != "-"
                found[name] = "" if is_open else f"{name!r} ({type(layer).__name__})"
        elif rule is None and operations.equal(node, *node.args, name=name) is None:
            found[name] = f"{name!r} (keras.ops, {type(layer).__name__})"
    return found


def _asked_float(
    graph: graphs.Graph, schemes: dict[str, str], merging: dict[int, str]
) -> frozenset[str]:
    """Names of the layers that shall stay float, and of what would merge into them."""
    return frozenset(
        node.layer.name
        for node in graph.nodes
        if schemes.get(merging.get(id(node), node.layer.name)) == "float"
        and not registry.copies(node.layer)
    )


def _merging(graph: graphs.Graph, clampless: frozenset[str]) -> dict[int, str]:
    """By id of a call that becomes part of the layer before it, the name of that layer."""
    norms = {id(node): norm for node, norm in batch_norms.pairs(graph)}
    relus = _relus_behind(graph, norms, clampless)
    return {
        id(after[id(node)]): node.layer.name
        for node in graph.nodes
        for after in (norms, relus)
        if id(node) in after
    }


def _relus_behind(
    graph: graphs.Graph, norms: dict[int, graphs.Node], clampless: frozenset[str]
) -> dict[int, graphs.Node]:
    """By id of a call whose output has a range: the ReLU that is its only reader, to be merged.

    Not at other than 8 bits (`clampless`) behind an operator that no ReLU is fused into.
    """
    found = {}
    for node in graph.nodes:
        rule = registry.find(node.layer)
        relu = graph.only_consumer(norms.get(id(node), node))
        if (
            relu is not None
            and rule is not None
            and rule.output == "range"
            and (rule.op in _FUSING or node.layer.name not in clampless)
            and registry.relu_limit(relu.layer)[0]
            and not registry.relu_limit(node.layer)[0]
            and registry.activation_name(node.layer) in ("linear", "elu")
        ):
            found[id(node)] = relu
    return found


def _check_layers(graph: graphs.Graph, floats: frozenset[str], merging: dict[int, str]) -> None:
    """Raises a ValueError that names every layer that cannot be quantized."""
    complaints: list[str] = []
    for node in graph.nodes:
        is_masked = node.layer.name in graph.masked and isinstance(node.layer, _MASKED)
        if node.layer.name in floats and not is_masked:
            continue
        complaint = _complaint(node, id(node) in merging)
        if is_masked:
            complaint = (
                f"{node.layer.name!r} ({type(node.layer).__name__}): reads a mask that Keras "
                "passes beside the tensors, which the file does not have; pass it as an "
                "argument, or build the Embedding with mask_zero=False"
            )
        if complaint is not None:
            refusal = graph.refused.get(node.layer.name)
            complaints.append(
                complaint + (f", and cannot be traced: {refusal:.200}" if refusal else "")
            )
    for x in graph.model.inputs:
        if any(x is y for y in graph.model.outputs):
            complaints.append(f"input {x.name!r}: is an output of the model as well")
    if complaints:
        raise ValueError(
            "Every layer must have an integer kernel. Received:\n  "
            + "\n  ".join(complaints)
            + "\ndocs/layers.md lists what has one. Leave layers in float, with "
            'overrides={"<name>": "float"}, or say what a class of your own becomes, with '
            "kerasq.register_layer."
        )


def _complaint(node: graphs.Node, merges: bool) -> str | None:
    """Why the layer of a call cannot be quantized, or None where it can."""
    layer = node.layer
    if not isinstance(layer, keras.Layer):
        if registry.copies(layer) and node.outputs[0].shape[:1] != node.inputs[0].shape[:1]:
            return f"{layer.name!r} ({type(layer).__name__}): needs to keep the first axis, samples"
        made = None if registry.copies(layer) else operations.equal(node, *node.args, name="")
        if made is None or isinstance(made[0], tuple):
            return None
        return registry.complaint(made[0])
    complaint = registry.complaint(layer)
    if isinstance(layer, keras.layers.BatchNormalization) and not merges:
        rank = len(node.inputs[0].shape)
        if layer.axis not in (-1, rank - 1):
            complaint = f"{layer.name!r} (BatchNormalization): needs axis=-1, has {layer.axis}"
    policy = layer.dtype_policy.name if isinstance(layer, keras.Layer) else "float32"
    if policy != "float32":
        complaint = f"{layer.name!r}: needs dtype 'float32', has {policy!r}"
    return complaint


class _Wrapping:
    """Puts a wrapper around every layer that computes, and boundaries where widths change."""

    def __init__(
        self,
        graph: graphs.Graph,
        schemes: dict[str, str],
        floats: frozenset[str],
        clampless: frozenset[str],
    ) -> None:
        self.graph = graph
        self.schemes = schemes
        self.floats = floats
        self.norms = {
            id(node): norm
            for node, norm in batch_norms.pairs(graph)
            if node.layer.name not in floats
        }
        self.relus = {
            key: relu
            for key, relu in _relus_behind(graph, self.norms, clampless).items()
            if relu.layer.name not in floats
        }
        self.merged = {id(node) for node in (*self.norms.values(), *self.relus.values())}
        self.boundaries: dict[tuple[int, int], tuple] = {}
        # By name of the leading layer.
        self.wrappers: dict[str, KernelWrapper] = {}
        self.plain: dict[str, keras.Layer] = {}

    def run(self, fold: bool, range_gradient: str, weights: Any) -> keras.Model:
        """The quantized model."""
        self._check_kernels()
        self.fold, self.range_gradient, self.weights = fold, range_gradient, weights
        return graphs.rewrite(self.graph, self._call)

    def _owner(self, layer: keras.Layer) -> str:
        return self.graph.owners.get(layer.name, layer.name)

    def _scheme(self, layer: keras.Layer) -> str:
        return self.schemes[self._owner(layer)]

    def _bits(self, layer: keras.Layer) -> int:
        return resolve(self._scheme(layer)).activation_bits

    def _op(self, layer: keras.Layer) -> str:
        found = registry.find(layer)
        return "-" if found is None or layer.name in self.floats else found.op

    def _is_wrapped(self, node: graphs.Node) -> bool:
        layer = node.layer
        return not (layer.name in self.floats or id(node) in self.merged or registry.copies(layer))

    def check_overrides(self, named: dict[Any, list[str]]) -> None:
        """Raises a ValueError where a key only fits layers without a scheme of their own."""
        heads = [node for node in self.graph.nodes if self._is_wrapped(node)]
        legal = {x.name for x in self.graph.model.inputs} | self.floats
        legal |= {self._owner(node.layer) for node in heads}
        for key, found in named.items():
            if found and not legal & {*found}:
                raise ValueError(
                    "`overrides` must name layers that have a grid of their own. "
                    f"Received: {key!r}, that is {found}, which only move values or are merged "
                    f"into the layer before them. Legal names: {sorted(legal)}."
                )

    def _check_kernels(self) -> None:
        """Raises a ValueError where int16 is asked of an operator that has no such kernel."""
        for node in self.graph.nodes:
            layer = node.layer
            op = self._op(layer)
            weight_bits = resolve(self._scheme(layer)).weight_bits if self._is_wrapped(node) else 8
            if weight_bits < 8 and registry.is_grouped(layer):
                raise ValueError(
                    "A convolution in groups must have 8-bit weights. Received: layer "
                    f"{self._owner(layer)!r} at {self._scheme(layer)!r}. Give it another scheme."
                )
            if not self._is_wrapped(node) or self._bits(layer) <= 8 or has_int16(op):
                continue
            owner = self._owner(layer)
            near = [x for y in node.inputs for x in self._before(y, owner)]
            near += self._behind(node, owner)
            names = sorted({self._owner(x) for x in near if has_int16(self._op(x))})
            raise ValueError(
                f"A layer at {self._scheme(layer)!r} must have an int16 kernel. Received: layer "
                f"{owner!r}, whose operator {op} has none here. Give it 'w8a8' "
                f"or 'float', and int16 to a neighbour instead: {names}."
            )

    def _is_other(self, node: graphs.Node, owner: str) -> bool:
        """Whether a call has a scheme of its own, and is not part of the user's layer `owner`."""
        return self._is_wrapped(node) and self._owner(node.layer) != owner

    def _before(self, x: keras.KerasTensor, owner: str) -> list[keras.Layer]:
        """The nearest layers before a tensor that have another scheme of their own."""
        nodes = [node for node in self.graph.nodes if node.output is x]
        if nodes and self._is_other(nodes[0], owner):
            return [nodes[0].layer]
        return [layer for node in nodes for y in node.inputs for layer in self._before(y, owner)]

    def _behind(self, node: graphs.Node, owner: str) -> list[keras.Layer]:
        """The nearest layers behind a call that have another scheme of their own."""
        found = []
        for reader in self.graph.consumers(node.output):
            other = self._is_other(reader, owner)
            found += [reader.layer] if other else self._behind(reader, owner)
        return found

    def _boundary(self, x: keras.KerasTensor, bits: int) -> keras.KerasTensor:
        """The tensor on a grid of `bits`: itself, or behind its one boundary of that width."""
        source = quantized_by(x)
        if bits == FLOAT_BITS or (source and _fits(_width(source), bits)):
            return x
        return self._requantized(x, bits)

    def _requantized(self, x: keras.KerasTensor, bits: int) -> keras.KerasTensor:
        """The tensor behind its one boundary of that width."""
        if (id(x), bits) not in self.boundaries:
            layer = graphs.origin(x)[0]
            is_input = isinstance(layer, keras.layers.InputLayer)
            is_own = is_input and bits == max(8, self._bits(layer))
            suffix = "quantize" if is_own else f"int{bits}"
            taken = {wrapper.name for wrapper, *_ in self.boundaries.values()}
            name = self.graph.free_name(f"{_legal(layer.name)}_{suffix}", taken)
            identity = keras.layers.Identity(name=name, dtype="float32")
            wrapper = QuantizeWrapper(
                identity,
                scheme=f"w8a{bits}",
                range_gradient=INPUT_GRADIENT if is_own else self.range_gradient,
            )
            self.boundaries[id(x), bits] = (wrapper, wrapper(x), x)
        return self.boundaries[id(x), bits][1]

    def _input(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """The tensor itself, or behind its quantizer where it is an input of the model."""
        layer = graphs.origin(x)[0]
        if not isinstance(layer, keras.layers.InputLayer) or not x.dtype.startswith("float"):
            return x
        return self._boundary(x, max(8, self._bits(layer)))

    def _call(self, node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        layer = node.layer
        if not isinstance(layer, keras.layers.Embedding):  # It reads indices, as floats too.
            args, kwargs = keras.tree.map_structure(
                lambda x: self._input(x) if isinstance(x, keras.KerasTensor) else x, (args, kwargs)
            )
        if not isinstance(layer, keras.Layer):  # The float model's own variables stay its own.
            args, kwargs = keras.tree.map_structure(
                lambda x: x.numpy() if isinstance(x, keras.Variable) else x, (args, kwargs)
            )
        if id(node) in self.merged:
            return args[0]
        if not self._is_wrapped(node):
            y = self._plain(layer)(*args, **kwargs)
            return self._boundary(y, self._bits(layer)) if self._is_picked(node) else y
        args = keras.tree.map_structure(lambda x: self._fitting(x, layer), args)
        relu, limit = registry.relu_limit(self.relus.get(id(node), node).layer)
        options: dict[str, Any] = {
            "scheme": self._scheme(layer),
            "relu": relu,
            "limit": limit,
            "range_gradient": self.range_gradient,
            "trainable": layer.trainable,
            "owner": self._owner(layer),
            "wide": not self._is_read_narrow(node),
        }
        if registry.rule(layer).kernel is None:
            return QuantizeWrapper(graphs.copy_built(layer), **options)(*args)
        options["training_dtype"] = self.graph.mixed.get(self._owner(layer), "float32")
        leader = self.graph.leaders[layer.name]
        if leader in self.wrappers:
            return KernelWrapper.sharing(self.wrappers[leader], name=layer.name, **options)(*args)
        factor, norm = 1.0, None
        if id(node) not in self.norms:
            kernel = graphs.copy_built(layer)
        elif self.fold:
            kernel, factor = batch_norms.fold(layer, self.norms[id(node)].layer)
        else:
            kernel = graphs.copy_built(layer)
            norm = graphs.copy_built(self.norms[id(node)].layer)
        wrapper = KernelWrapper(kernel, batch_norm=norm, weights=self.weights, **options)
        self.wrappers[leader] = wrapper
        output = wrapper(*args)
        wrapper.kernel_gain.assign(factor)
        return output

    def _is_picked(self, node: graphs.Node) -> bool:
        """Whether the rows that a call picks from weights are read as integers only."""
        rule = registry.find(node.layer)
        if rule is None or rule.op != "GATHER" or self._bits(node.layer) == FLOAT_BITS:
            return False
        readers = self._readers(node)
        return bool(readers) and not {reader.layer.name for reader in readers} & self.floats

    def _is_read_narrow(self, node: graphs.Node) -> bool:
        """Whether a layer that multiplies reads the output of a call at fewer than 8 bits."""
        norm = self.norms.get(id(node), node)
        readers = self._readers(self.relus.get(id(node), norm))
        return any(multiplies(self._op(x.layer)) and self._bits(x.layer) < 8 for x in readers)

    def _readers(self, node: graphs.Node) -> list[graphs.Node]:
        """The calls that read what a call returns, behind those that only move it."""
        return [
            found
            for reader in self.graph.consumers(node.outputs[0])
            for found in (self._readers(reader) if registry.copies(reader.layer) else [reader])
        ]

    def _plain(self, layer: keras.Layer) -> keras.Layer:
        """A copy of a layer that is not wrapped, one for all its calls where it has weights."""
        if not getattr(layer, "weights", None):
            return graphs.copy_layer(layer)
        leader = self.graph.leaders[layer.name]
        if leader not in self.plain:
            self.plain[leader] = graphs.copy_built(layer, name=leader)
        return self.plain[leader]

    def _fitting(self, x: keras.KerasTensor, layer: keras.Layer) -> keras.KerasTensor:
        """An input of `layer` at the width that the layer reads."""
        op, source = self._op(layer), quantized_by(x)
        if op in OPERATORS and OPERATORS[op].one_grid and source is not None:
            return x  # It requantizes its inputs itself.
        if op == "AVERAGE_POOL_2D" and source is not None and _width(source) < 8:
            # Averages of few levels want more of them.
            return self._requantized(x, max(8, self._bits(layer)))
        bits = self._bits(layer)
        return self._boundary(x, bits if multiplies(op) else max(8, bits))


def _width(source: QuantizeWrapper) -> int:
    """The bits that the output of a layer has."""
    return source.bits.code_bits if source.quantizer is None else source.quantizer.bits


def _fits(width: int, bits: int) -> bool:
    """Whether a layer that reads `bits` can read codes of `width` as they are."""
    return width == bits or width < bits <= 8


def _legal(name: str) -> str:
    """`name` without what TensorFlow refuses in a name scope."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
