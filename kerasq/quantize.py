"""`quantize_model`: from a float Keras model to one that trains and predicts on integer grids."""

import re
from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import registry, scheme
from kerasq.fake_quant import RANGE_GRADIENTS
from kerasq.prepare import batch_norm as batch_norms
from kerasq.prepare.separate import separate
from kerasq.wrappers import KernelWrapper, QuantizeWrapper, ranged

BATCH_NORMS = ("fold", "keep")


def quantize_model(
    model: keras.Model,
    scheme: str = "w8a8",
    overrides: dict[str, str] | None = None,
    batch_norm: str = "fold",
    range_gradient: str = "lsq",
) -> keras.Model:
    """Returns a copy of `model` that computes as the integer-only model on the device will.

    The copy is a plain Functional model with the same inputs, outputs and order of layers.
    Layers keep their names; BatchNormalization and ReLU become part of the layer before them.
    Train it with `compile` and `fit`, and export it with `kerasq.export_tflite`.

    Args:
        model: a built Keras 3 Sequential or Functional model. It is not changed.
        scheme: bit widths; "w8a8", int8 weights and int8 activations, is the only one for now.
        overrides: scheme by layer name, for layers that differ from `scheme`.
        batch_norm: "fold" folds BatchNormalization into the kernel before it, which is the
            faster to train; "keep" keeps it trainable and folds it in inference and at export.
        range_gradient: how ranges learn: "lsq" (Esser et al. 2020), "clip" (PACT, Choi et al.
            2018), or "none" (they follow a moving average of the data while training).

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
    if isinstance(model, keras.Model) and ranged(model):
        raise ValueError(
            f"`model` must be a float model. Received: {model.name!r}, which is quantized already. "
            "Quantize the model that it was made from."
        )
    _check_option("batch_norm", batch_norm, BATCH_NORMS)
    _check_option("range_gradient", range_gradient, RANGE_GRADIENTS)
    _check_layers(graphs.read(model))
    graph = graphs.read(separate(model))
    return _wrap(graph, scheme, overrides, batch_norm == "fold", range_gradient)


def _check_option(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"`{name}` must be one of {list(legal)}. Received: {name}={value!r}.")


def _check_layers(graph: graphs.Graph) -> None:
    """Raises a ValueError that names every layer that cannot be quantized."""
    merged = {id(norm) for _, norm in batch_norms.pairs(graph)}
    complaints: list[str] = []
    calls: dict[str, int] = {}
    for node in graph.nodes:
        layer = node.layer
        calls[layer.name] = calls.get(layer.name, 0) + 1
        complaint = registry.complaint(layer)
        if complaint is None and registry.rule(layer).output == "merged" and id(node) not in merged:
            complaint = (
                f"{layer.name!r} ({type(layer).__name__}): must be the only reader of a layer "
                "with a kernel and no activation"
            )
        policy = layer.dtype_policy.name if isinstance(layer, keras.Layer) else "float32"
        if policy != "float32":
            complaint = f"{layer.name!r}: needs dtype 'float32', has {policy!r}"
        if complaint is None and isinstance(layer, keras.layers.Dense):
            shape = node.inputs[0].shape
            if len(shape) != 2:
                complaint = f"{layer.name!r} (Dense): needs an input of rank 2, has shape {shape}"
        if complaint is not None:
            complaints.append(complaint)
    for x in graph.model.inputs:
        if x.dtype != "float32":
            complaints.append(f"input {x.name!r}: needs dtype 'float32', has {x.dtype!r}")
        if any(x is y for y in graph.model.outputs):
            complaints.append(f"input {x.name!r}: is an output of the model as well")
    complaints += [f"{name!r}: called {n} times" for name, n in calls.items() if n > 1]
    if complaints:
        legal = sorted({cls.__name__ for cls in registry.LAYERS})
        raise ValueError(
            "Every layer must have an integer kernel. Received:\n  "
            + "\n  ".join(complaints)
            + f"\nLayers that have one: {legal}, Activation of {sorted(registry.ACTIVATIONS)}. "
            "Replace these layers, or split the model and quantize the part without them."
        )


def _wrap(
    graph: graphs.Graph,
    default: str,
    overrides: dict[str, str] | None,
    fold: bool,
    range_gradient: str,
) -> keras.Model:
    """Puts a wrapper around every layer that computes; copies those that only move values."""
    norms = {id(node): norm for node, norm in batch_norms.pairs(graph)}
    relus = _relus_behind(graph, norms)
    merged = {id(node) for node in (*norms.values(), *relus.values())}
    names = [n.layer.name for n in graph.nodes if id(n) not in merged and _computes(n.layer)]
    schemes = scheme.per_layer(default, overrides, names)
    inputs: dict[int, Any] = {}

    def quantized(x: keras.KerasTensor) -> keras.KerasTensor:
        """The tensor itself, or behind its quantizer where it is an input of the model."""
        if not isinstance(graphs.origin(x)[0], keras.layers.InputLayer):
            return x
        if id(x) not in inputs:
            identity = keras.layers.Identity(name=graph.free_name(f"{_legal(x.name)}_quantize"))
            wrapper = QuantizeWrapper(identity, scheme=default, range_gradient="fixed")
            inputs[id(x)] = (wrapper(x), x)
        return inputs[id(x)][0]

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        args = keras.tree.map_structure(quantized, args)
        layer = node.layer
        if id(node) in merged:
            return args[0]
        if not _computes(layer):
            return graphs.copy_call(layer, *args, **kwargs)
        source = relus.get(id(node), node).layer
        relu, limit = registry.relu_limit(source)
        options: dict[str, Any] = {
            "scheme": schemes[layer.name],
            "relu": relu,
            "limit": limit,
            "range_gradient": range_gradient,
            "trainable": layer.trainable,
        }
        if registry.rule(layer).kernel is None:
            return QuantizeWrapper(graphs.copy_layer(layer), **options)(*args)
        if id(node) not in norms:
            return KernelWrapper(layer, **options)(*args)
        norm = norms[id(node)].layer
        if not fold:
            return KernelWrapper(layer, batch_norm=norm, **options)(*args)
        layer, factor = batch_norms.fold(layer, norm)
        wrapper = KernelWrapper(layer, **options)
        output = wrapper(*args)
        wrapper.kernel_gain.assign(factor)
        return output

    return graphs.rewrite(graph, call)


def _relus_behind(graph: graphs.Graph, norms: dict[int, graphs.Node]) -> dict[int, graphs.Node]:
    """By id of a call whose output has a range: the ReLU that is its only reader, to be merged."""
    found = {}
    for node in graph.nodes:
        relu = graph.only_consumer(norms.get(id(node), node))
        if (
            relu is not None
            and _has_range(node.layer)
            and registry.relu_limit(relu.layer)[0]
            and not registry.relu_limit(node.layer)[0]
        ):
            found[id(node)] = relu
    return found


def _legal(name: str) -> str:
    """`name` without what TensorFlow refuses in a name scope."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _computes(layer: keras.Layer) -> bool:
    return registry.rule(layer).output not in ("same", "merged")


def _has_range(layer: keras.Layer) -> bool:
    return registry.rule(layer).output == "range"
