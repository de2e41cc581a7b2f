"""What has no integer kernel and stays float, and what no file can have."""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from kerasq import convertible, fits, registry
from kerasq import graph as graphs
from kerasq.layers import ActivityRegularizer
from kerasq.prepare import masks, operations
from kerasq.rule import Output, Rule
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
    if type(layer) is keras.layers.TimeDistributed:
        return _stays_distributed(layer)
    return graphs.is_of_keras(type(layer), "layers") or registry.find(layer) is not None


def _stays_distributed(layer: keras.layers.TimeDistributed) -> bool:
    """Whether it is a Dense for all steps, or what no kernel is for, at each step either."""
    inner = layer.layer
    rule = registry.find(inner)
    is_float = rule is None or rule.output == Output.FLOAT
    return fits.distributed_fits(layer, None) or (is_closed(inner) and is_float)


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
    # What only moves values, or compares them, is no float layer: between integer ones its values
    # stay codes.
    return frozenset(
        node.layer.name
        for node in graph.nodes
        if schemes[fused.get(id(node), node.layer.name)] == "float"
        and not (registry.passes_through(node.layer) or registry.gives_indices(node.layer))
    )


def without_kernel(graph: graphs.Graph, asked: frozenset[str]) -> dict[str, str]:
    """By name, what to print of layers and operations that have no integer kernel.

    It is empty for what may become integer at export all the same, such as Embedding.

    Args:
        graph: the user's graph.
        asked: names of layers that shall stay float, of which nothing need be said.
    """
    found = {}
    for node in graph.nodes:
        reason = None if node.layer.name in asked else _lack(graph, node)
        if reason is None:
            continue
        is_said = reason or not _may_be_integer(node)
        found[node.layer.name] = _named(node, reason) if is_said else ""
    return found


def _may_be_integer(node: graphs.Node) -> bool:
    """Whether a call without an integer kernel may be none of floats in the file, all the same."""
    # Indices and conditions lie on no grid, and what computes them is not in float.
    if not any("float" in x.dtype for x in (*node.inputs, *node.outputs)):
        return True
    rule = registry.find(node.layer)
    return rule is not None and rule.output == Output.FLOAT and bool(rule.operators)


def _named(node: graphs.Node, reason: str) -> str:
    """A layer by its name, its class and why it stays float, where there is more to say."""
    layer = node.layer
    kind = type(layer).__name__
    if not isinstance(layer, keras.Layer):
        kind = f"keras.ops, {kind}"
    return f"{layer.name!r} ({kind}: {reason})" if reason else f"{layer.name!r} ({kind})"


def _lack(graph: graphs.Graph, node: graphs.Node) -> str | None:
    """Why a call has no integer kernel: "" where no call of its kind has one; None where it has."""
    layer, rule = node.layer, registry.find(node.layer)
    if not isinstance(layer, keras.Layer):
        return _lack_of_operation(graph, node)
    # Of a layer that has a rule only the activation cannot be.
    if node.source.refusal and rule is None:
        return f"cannot be traced: {node.source.refusal:.200}"
    reason = registry.complaint(layer)
    if rule is None or reason is not None:
        return reason
    if rule.output == Output.FLOAT:
        return ""
    return _misfit(node, rule)


def _misfit(node: graphs.Node, rule: Rule) -> str | None:
    """Why a call has no integer kernel, where others of its layer do; None where it has."""
    found = (rule.fits or fits.reads_tensors_alone)(node.layer, *node.args, **node.kwargs)
    if isinstance(found, str):
        return found
    if found:
        return None
    # What a rule's `fits` asks for is the first thing that its note says.
    return f"integer only {rule.note.split(';')[0]}" if rule.fits else "reads more than its tensors"


def _lack_of_operation(graph: graphs.Graph, node: graphs.Node) -> str | None:
    """As `_lack`, of an operation of `keras.ops`."""
    if registry.passes_through(node.layer):
        return None
    is_read = masks.feeds_softmax(graph, node)
    made = operations.equal(node, *node.args, name=node.layer.name, feeds_softmax=is_read)
    if made is None:
        return ""
    return None if isinstance(made[0], tuple) else registry.complaint(made[0])


def float_activations(graph: graphs.Graph, floats: frozenset[str]) -> list[str]:
    """What to print of layers that are integer, but for an activation that has no kernel."""
    layers = [node.layer for node in graph.nodes if node.layer.name not in floats]
    return [
        f"{layer.name!r} (activation {registry.activation_name(layer)!r})"
        for layer in layers
        if (rule := registry.find(layer)) is not None
        and rule.kernel is not None
        and not _has_integer_activation(layer)
    ]


def _has_integer_activation(layer: keras.Layer) -> bool:
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.Layer):  # Such as a LeakyReLU.
        return registry.complaint(activation) is None
    return registry.activation_name(layer) in registry.ACTIVATIONS


def check_asked(
    named: Mapping[Any, list[str]], schemes: dict[str, str], lacking: Mapping[str, str]
) -> None:
    """Raises a ValueError where a key of `overrides` asks for integers that there are none of.

    Args:
        named: by key, the names of the layers that it fits.
        schemes: names of schemes by layer name.
        lacking: what `without_kernel` returned.
    """
    for key, names in named.items():
        texts = [lacking[x] for x in names if lacking.get(x) and schemes[x] != "float"]
        # A pattern or class may fit others, for which it is meant then.
        if names and len(texts) == len(names):
            raise ValueError(
                "`overrides` must give integers to layers that have an integer kernel. "
                f"Received: {key!r}, that is {', '.join(texts)}. Leave it out: it stays float."
            )


def check(graph: graphs.Graph, floats: frozenset[str]) -> None:
    """Raises a ValueError that names every layer that a file cannot have, in float either.

    Args:
        graph: the user's graph.
        floats: names of the layers that stay float.
    """
    found = {node.layer.name: text for node in graph.nodes if (text := _complaint(node))}
    found |= _refused([x for x in graph.nodes if x.layer.name in floats - {*found}])
    lines = [
        f"{node.layer.name!r} ({type(node.layer).__name__}): {found[node.layer.name]}"
        for node in graph.nodes
        if node.layer.name in found
    ]
    lines += _returned_inputs(graph.model)
    if lines:
        raise ValueError(
            "Every layer must run in a file, on integers or in float. Received:\n  "
            + "\n  ".join(lines)
        )


def _refused(nodes: list[graphs.Node]) -> dict[str, str]:
    """By name, of float layers that LiteRT cannot run: why, and the way out."""
    unknown = [x for x in nodes if _is_unknown(x)]
    ways = {x.layer.name: _way_out(x) for x in unknown}
    refused = convertible.refusals(unknown)
    return {name: f"{text}; {ways[name]}" for name, text in refused.items()}


def _way_out(node: graphs.Node) -> str:
    makers = [graphs.origin(x)[0] for x in node.inputs]
    ways = ["replace it"]
    if all(isinstance(x, keras.layers.InputLayer) for x in makers):
        ways.append("leave it in front of the model")
    if _has_kernel(node):
        ways.append("give it integers")
    return ", or ".join(ways)


def _returned_inputs(model: keras.Model) -> list[str]:
    return [
        f"input {x.name!r}: is an output of the model as well; leave that output out"
        for x in model.inputs
        if any(x is y for y in model.outputs)
    ]


def _is_unknown(node: graphs.Node) -> bool:
    """Whether the table does not say what the file has of a call, in float either."""
    if _has_kernel(node):
        # Of five axes few float kernels are; for slopes, the export has others.
        has_many_axes = any(len(x.shape) > 4 for x in node.inputs)
        return has_many_axes and not isinstance(node.layer, keras.layers.PReLU)
    rule = None if _is_refused(node.layer) else registry.find(node.layer)
    return rule is None or rule.output != Output.FLOAT


def _has_kernel(node: graphs.Node) -> bool:
    """Whether a call of a layer, which stays float, could be integer."""
    if _is_refused(node.layer):
        return False
    rule = registry.rule(node.layer)
    return rule.output != Output.FLOAT and _misfit(node, rule) is None


def _is_refused(operation: Any) -> bool:
    """Whether the table has no layer like this one."""
    return not isinstance(operation, keras.Layer) or registry.complaint(operation) is not None


def _complaint(node: graphs.Node) -> str | None:
    """Why a file cannot have the layer of a call, and the way out; None where it can."""
    layer = node.layer
    if _has_hidden_mask(node):
        return (
            "reads a mask that Keras passes beside the tensors, which the file does not have; "
            "build the Embedding with mask_zero=False, and pass a mask as an argument, if need be"
        )
    if any(0 in y.shape for y in node.outputs):
        return "needs to leave values, has none; leave it out"
    # Whoever runs the file chooses the size of its batch.
    if _moves_samples(node):
        return "needs to keep the first axis, samples; do it before or behind the model"
    if not isinstance(layer, keras.Layer):
        return _complaint_of_operation(node)
    if getattr(layer, "stateful", False):
        return (
            "keeps its state between calls, which a file does not; build it with stateful=False, "
            "and make the state an input and an output, by initial_state=... and return_state=True"
        )
    # Mixed precision is float32 by now (`graph.read`): what is left has weights of another type.
    # Layers without a rule may return integers, such as Hashing.
    policy = layer.dtype_policy.name
    if policy != "float32" and ("float" in policy or registry.find(layer) is not None):
        return f"needs dtype='float32', has {policy!r}; build it with that"
    return None


def _complaint_of_operation(node: graphs.Node) -> str | None:
    """As `_complaint`, of an operation of `keras.ops`."""
    if registry.gives_indices(node.layer) and operations.equal(node, *node.args, name="") is None:
        return f"needs an axis behind that of samples, has axis={node.layer.axis}"
    return None


def _has_hidden_mask(node: graphs.Node) -> bool:
    """Whether a call computes something else under a mask that is none of its arguments."""
    # Where a layer of one tensor has an argument `mask`, Keras has filled it in.
    is_seen = bool(graphs.symbolic(node.kwargs.get("mask")))
    return node.source.reads_mask and registry.reads_mask(node.layer) and not is_seen


def _picks_samples(node: graphs.Node) -> bool:
    key = node.args[1]
    first = key[0] if isinstance(key, (list, tuple)) and key else key
    if not isinstance(first, slice):
        return first is not Ellipsis
    # `x[0:]` and `x[::1]` are `x[:]`, and so TensorFlow writes it.
    ends = (first.start, first.stop, first.step)
    return bool(graphs.symbolic(ends)) or not (
        first.start in (None, 0) and first.stop is None and first.step in (None, 1)
    )


# By name of the operation, whose classes are private to Keras.
_MOVES_SAMPLES: dict[str, Callable[[graphs.Node], bool]] = {
    "GetItem": _picks_samples,
    # It sums over the last axis but one of the second, or over the only one.
    "Matmul": lambda node: len(node.inputs) == 2 and len(node.inputs[1].shape) <= 2,
    # It lays out all values in a row first.
    "Outer": lambda node: True,
}


def _moves_samples(node: graphs.Node) -> bool:
    """Whether a call goes along the first axis, for which a file has its own size."""
    layer, x, y = node.layer, node.inputs[0], node.outputs[0]
    kind, moves = type(layer).__name__, registry.passes_through(layer)
    if kind in _MOVES_SAMPLES:
        return _MOVES_SAMPLES[kind](node)
    if not moves and kind not in ("Concatenate", "Softmax"):
        return False
    # Sizes that are not known look alike, so axes tell more.
    return (moves and x.shape[:1] != y.shape[:1]) or 0 in fits.axes(getattr(layer, "axis", ()), x)


def without_lost_regularizers(graph: graphs.Graph) -> tuple[graphs.Graph, list[str]]:
    """A graph without activity regularizers that are in the way, and the names of their layers.

    In front of what a layer is fused with its own values are none in the quantized model, and
    outputs of a model keep the names of their layers. Attention and Bidirectional have theirs
    inside, where their parts are.
    """
    ends = {id(y) for y in keras.tree.flatten(graph.model.outputs)}

    def is_lost(node: graphs.Node) -> bool:
        if not isinstance(node.layer, ActivityRegularizer):
            return False
        readers = graph.consumers(node.output)
        return id(node.output) in ends or any(_is_fused(reader.layer) for reader in readers)

    lost = {
        id(node): graphs.origin(node.inputs[0])[0].name for node in graph.nodes if is_lost(node)
    }
    inside = [node.source.name for node in graph.nodes if _regularizes_inside(node.layer)]
    if not lost:
        return graph, inside
    names = [*dict.fromkeys([*lost.values(), *inside])]

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        return args[0] if id(node) in lost else graphs.copy_call(node.layer, *args, **kwargs)

    return graphs.transform(graph, call), names


def _is_fused(layer: keras.layers.Layer) -> bool:
    """Whether a layer becomes part of the one before it."""
    is_relu = registry.activation_name(layer).startswith("relu")
    return is_relu or isinstance(layer, (keras.layers.ReLU, keras.layers.BatchNormalization))


def _regularizes_inside(layer: keras.layers.Layer) -> bool:
    """Whether layers inside of a layer have activity regularizers."""
    loops = [getattr(layer, f"{way}_layer", None) for way in ("forward", "backward")]
    if any(getattr(loop, "activity_regularizer", None) for loop in loops):
        return True
    attentions = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
    is_attention = isinstance(layer, attentions)
    return is_attention and bool(graphs.configuration(layer).get("activity_regularizer"))


def dropped_states(graph: graphs.Graph, floats: frozenset[str]) -> list[str]:
    """The integer layers whose cells drop states in training, which their steps do not."""
    found = []
    for node in graph.nodes:
        layer = node.layer
        is_both = isinstance(layer, keras.layers.Bidirectional)
        loops = (layer.forward_layer, layer.backward_layer) if is_both else (layer,)
        cells = [x for loop in loops if type(loop) in fits.RECURRENT for x in fits.cells(loop)]
        if layer.name not in floats and any(x.recurrent_dropout for x in cells):
            found.append(node.source.name)
    return found


def lost_rules(graph: graphs.Graph, quantized: keras.Model) -> list[str]:
    """The layers whose weights have regularizers or constraints in the float model alone.

    As of layers that are computed in parts, whose weights have other shapes.
    """
    wanted: dict[str, set[int]] = {}
    for node in graph.nodes:
        own = getattr(node.layer, "weights", ())
        given = keras.tree.flatten((node.args, node.kwargs))
        variables = [*own, *(x for x in given if isinstance(x, keras.Variable))]
        # A further call has a copy of the weights.
        wanted.setdefault(node.source.name, _ruled(variables))
    kept: dict[str, set[int]] = {}
    for layer in quantized.layers:
        inner = getattr(layer, "layer", layer)
        kept.setdefault(getattr(layer, "source", layer.name), set()).update(_ruled(inner.weights))
        if (norm := getattr(layer, "batch_norm", None)) is not None:
            kept.setdefault(norm.name, set()).update(_ruled(norm.weights))
    return [repr(name) for name, own in wanted.items() if len(own) > len(kept.get(name, ()))]


def _ruled(variables: Any) -> set[int]:
    """The ids of variables that a regularizer or a constraint is for."""
    return {id(x) for x in variables if x.regularizer is not None or x.constraint is not None}
