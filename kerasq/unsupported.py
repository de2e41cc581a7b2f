"""What has no integer kernel: what stays float, and what cannot be quantized at all."""

from collections.abc import Mapping
from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import registry
from kerasq.fits import reads_tensors_alone
from kerasq.prepare import operations
from kerasq.rule import Output
from kerasq.scheme import fitting


def is_closed(layer: keras.Layer, overrides: Mapping[Any, str] | None = None) -> bool:
    """Whether a layer stays one layer; of others, what their `call` does is quantized.

    Those stay one that Keras has, that have a rule of their own, or that shall stay float. But a
    layer is parted from an activation that is none of Keras's.
    """
    # A Lambda is Keras's, but what it does is the user's.
    if isinstance(layer, (keras.Model, keras.layers.Lambda)):
        return False
    named = {layer.name: layer}
    if any(s == "float" and fitting(key, named) for key, s in (overrides or {}).items()):
        return True
    if graphs.own_activation(layer) is not None and _computes_linearly(layer):
        return False
    return graphs.is_of_keras(type(layer), "layers") or registry.find(layer) is not None


def _computes_linearly(layer: keras.Layer) -> bool:
    """Whether what a layer computes is an activation of something linear, or of its input."""
    rule = registry.find(layer)
    has_kernel = rule is not None and rule.kernel is not None
    return has_kernel or type(layer) is keras.layers.Activation


def asked_float(
    graph: graphs.Graph, schemes: dict[str, str], fused: Mapping[int, str]
) -> frozenset[str]:
    """Names of the layers that shall stay float, and of what would be fused with them.

    Args:
        graph: the user's graph.
        schemes: names of schemes by layer name.
        fused: by id of a call that is fused, the name of the layer that it becomes part of.
    """
    # What only moves values is no float layer: between integer ones its values stay codes.
    return frozenset(
        node.layer.name
        for node in graph.nodes
        if schemes[fused.get(id(node), node.layer.name)] == "float"
        and not registry.passes_through(node.layer)
    )


def without_kernel(graph: graphs.Graph, asked: frozenset[str]) -> dict[str, str]:
    """By name, what to print of layers and operations that LiteRT has no integer kernel for.

    Args:
        graph: the user's graph.
        asked: names of layers that shall stay float, of which nothing need be said.
    """
    found = {}
    for node in graph.nodes:
        name = node.layer.name
        if name in asked:
            continue
        text = _remark(node)
        if text is not None:
            found[name] = text
    return found


def _remark(node: graphs.Node) -> str | None:
    """What to print where a call has no integer kernel; None where it has one."""
    layer, rule = node.layer, registry.find(node.layer)
    if not isinstance(layer, keras.Layer):
        if rule is not None or operations.equal(node, *node.args, name=layer.name) is not None:
            return None
        return f"{layer.name!r} (keras.ops, {type(layer).__name__})"
    if rule is None:
        return None  # An error names it.
    is_float = rule.output == Output.FLOAT
    fits = rule.fits or reads_tensors_alone
    misfits = not fits(layer, *node.args, **node.kwargs)
    if not is_float and not misfits:
        return None
    # What has an operator all the same, such as Embedding, may become integer at export.
    return "" if is_float and rule.operators else f"{layer.name!r} ({type(layer).__name__})"


def check(graph: graphs.Graph, floats: frozenset[str], fused: Mapping[int, str]) -> None:
    """Raises a ValueError that names every layer that cannot be quantized.

    Args:
        graph: the user's graph.
        floats: names of layers that stay float.
        fused: by id of a call that is fused, the name of the layer that it becomes part of.
    """
    complaints = []
    for node in graph.nodes:
        found = _complaint(node, node.layer.name in floats, id(node) in fused)
        if found is not None:
            refusal = node.source.refusal
            complaints.append(
                found + (f", and cannot be traced: {refusal:.200}" if refusal else "")
            )
    complaints += [
        f"input {x.name!r}: is an output of the model as well"
        for x in graph.model.inputs
        if any(x is y for y in graph.model.outputs)
    ]
    if complaints:
        raise ValueError(
            "Every layer must have an integer kernel. Received:\n  "
            + "\n  ".join(complaints)
            + "\ndocs/layers.md lists what has one. Leave layers in float, with "
            'overrides={"<name>": "float"}, or say what a class of your own becomes, with '
            "kerasq.register_layer."
        )


def _complaint(node: graphs.Node, is_float: bool, is_fused: bool) -> str | None:
    """Why the layer of a call cannot be quantized, or None where it can."""
    layer = node.layer
    # Before all else: the file would compute something else in float, too.
    if node.source.reads_mask and registry.reads_mask(layer):
        return (
            f"{layer.name!r} ({type(layer).__name__}): reads a mask that Keras "
            "passes beside the tensors, which the file does not have; pass it as an "
            "argument, or build the Embedding with mask_zero=False"
        )
    if is_float:
        return None
    if not isinstance(layer, keras.Layer):
        return _operation_complaint(node)
    # Mixed precision is float32 by now (`graph.read`): what is left has weights of another type.
    if layer.dtype_policy.name != "float32":
        return f"{layer.name!r}: needs dtype 'float32', has {layer.dtype_policy.name!r}"
    if isinstance(layer, keras.layers.BatchNormalization) and not is_fused:
        # Alone it becomes a Scale, along the last axis.
        rank = len(node.inputs[0].shape)
        if layer.axis not in (-1, rank - 1):
            return f"{layer.name!r} (BatchNormalization): needs axis=-1, has {layer.axis}"
    return registry.complaint(layer)


def _operation_complaint(node: graphs.Node) -> str | None:
    """Why an operation of `keras.ops` cannot be quantized, or None where it can."""
    operation = node.layer
    if registry.passes_through(operation):
        # Whoever runs the file chooses the size of its batch.
        if node.outputs[0].shape[:1] == node.inputs[0].shape[:1]:
            return None
        kind = type(operation).__name__
        return f"{operation.name!r} ({kind}): needs to keep the first axis, samples"
    made = operations.equal(node, *node.args, name="")
    return None if made is None or isinstance(made[0], tuple) else registry.complaint(made[0])
