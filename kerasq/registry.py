"""The registry: the rule of each layer, from the table of Keras's own and from what users add."""

from typing import Any

import keras

from kerasq.graph import is_of_keras, own_activation
from kerasq.grid import Grid
from kerasq.layer_rules import ACTIVATIONS, LAYERS, NEAREST, OPERATIONS
from kerasq.layers import Function
from kerasq.litert.operators import OPERATORS
from kerasq.rule import Output, Rule
from kerasq.support import tables

L = keras.layers

_REGISTERED: dict[type, Rule] = {}


def register_layer(
    cls: type[keras.layers.Layer],
    op: str,
    *,
    kernel: str | None = None,
    bias: str = "bias",
    channels: int = 1,
    output: str | Grid = "range",
) -> None:
    """Says what a layer class of your own becomes, so that it is quantized as one layer.

    Args:
        cls: the class. Its `call` must be what TFLiteConverter makes `op` of, and nothing else, but
            for a bias.
        op: the LiteRT operator: one that a layer of the table in docs/layers.md becomes; "GATHER"
            for a function of each value alone, a lookup table; "-" for the identity.
        kernel: attribute of the weight that is quantized per channel, or None.
        bias: attribute of the bias, or of None where there is none.
        channels: the number of trailing axes of the kernel that make up the output channels.
        output: grid of the output: "range" (learned), "same" (the input's, values only moved),
            "float" (the layer stays float), or the grid that the kernel insists on.

    Raises:
        ValueError: for a class that Keras has, an operator or output that is not known, or weights
            that do not fit the operator.
    """
    model = _model_rule(cls, op)
    # Of the model only operators and options are taken over: its conditions, such as a format or
    # masks, are those of Keras's own layer, and the user vouches for what `cls` does.
    weighted = op in OPERATORS and OPERATORS[op].channels is not None
    kind = _registered_output(op, model, output)
    if weighted != (kernel is not None) and kind != Output.FLOAT:
        raise ValueError(
            f"`kernel` must name the weight of an operator that has one, and only of such. "
            f"Received: op={op!r}, kernel={kernel!r}."
        )
    _REGISTERED[cls] = Rule(
        operators=model.operators,
        output=kind,
        kernel=kernel,
        bias=bias,
        channels=channels,
        grids={output.bits: output} if isinstance(output, Grid) else {},
        options=model.options,
        tabled=model.tabled,
        note="registered",
    )


def _model_rule(cls: Any, op: str) -> Rule:
    """The rule of the table whose operator a class of the user's becomes."""
    is_layer = isinstance(cls, type) and issubclass(cls, keras.layers.Layer)
    if not is_layer or is_of_keras(cls):
        raise ValueError(f"`cls` must be a layer class of your own. Received: {cls!r}.")
    # What is decomposed, fused or float is no operator that a class could become.
    computed = (Output.LEARNED, Output.INPUT, Output.PASS_THROUGH, Output.FIXED)
    rules = [rule for rule in (*LAYERS.values(), *ACTIVATIONS.values()) if rule.output in computed]
    legal = {rule.op: rule for rule in rules if len(rule.operators) <= 1}
    legal["GATHER"] = LAYERS[Function]
    if op not in legal:
        raise ValueError(f"`op` must be one of {sorted(legal)}. Received: op={op!r}.")
    return legal[op]


def _registered_output(op: str, model: Rule, output: str | Grid) -> Output:
    """The output of a registered layer: of what the user asks for, what the operator allows."""
    if isinstance(output, Grid):
        kind = Output.FIXED
    elif output in ("range", "same", "float"):
        kind = Output(output)
    else:
        raise ValueError(
            f"`output` must be 'range', 'same', 'float' or a Grid. Received: output={output!r}."
        )
    # The default, which an identity cannot have: it leaves no operator that could requantize.
    if op == "-" and kind == Output.LEARNED:
        return Output.PASS_THROUGH
    if model.output not in (Output.PASS_THROUGH, Output.INPUT):
        return kind
    if kind not in (Output.PASS_THROUGH, Output.FLOAT):
        raise ValueError(
            f"`output` must be 'same' for an operator that keeps the grid of its input. "
            f"Received: op={op!r}, output={output!r}."
        )
    return model.output if kind == Output.PASS_THROUGH else kind


def activation_name(layer: keras.Layer) -> str:
    """The name of a layer's activation function: "linear" where it has none."""
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    own = own_activation(layer)
    name = getattr(own or function, "__name__", None)
    return f"{name} of your own" if own and name else name or type(function).__name__


def find(layer: keras.Layer) -> Rule | None:
    """The rule for `layer`, or None where there is none."""
    if type(layer) is L.Activation:
        return ACTIVATIONS.get(activation_name(layer))
    # Operations of keras.ops are no layers; their classes are known by name only.
    if not isinstance(layer, keras.Layer):
        return OPERATIONS.get(type(layer).__name__)
    # By the very class, since a subclass may compute something else, but for those of our own.
    kind = getattr(layer, "stands_for", type(layer))
    found = _REGISTERED.get(kind) or LAYERS.get(kind)
    is_nearest = type(layer) in NEAREST and layer.interpolation == "nearest"
    return NEAREST[type(layer)] if is_nearest else found


def rule(layer: keras.Layer) -> Rule:
    """The rule for `layer`.

    Raises:
        ValueError: where there is none.
    """
    found = find(layer)
    if found is None:
        raise ValueError(
            "The layer must have a rule. Received: "
            f"{layer.name!r} ({type(layer).__name__}: {complaint(layer)})."
        )
    return found


def passes_through(layer: keras.Layer) -> bool:
    """Whether a layer only moves or picks values: its output lies on the grid of its input."""
    found = find(layer)
    return found is not None and found.output == Output.PASS_THROUGH and found.unmet(layer) is None


def gives_indices(layer: keras.Layer) -> bool:
    """Whether a layer returns integers that lie on no grid, such as the place of a maximum."""
    found = find(layer)
    return found is not None and found.output == Output.INDEX


def is_dropped(layer: keras.Layer) -> bool:
    """Whether a layer leaves no operator behind, such as Dropout: its output is its input."""
    return passes_through(layer) and not rule(layer).operators


def relu_limit(layer: keras.Layer) -> tuple[bool, float | None]:
    """Whether `layer` is a ReLU, and its upper limit (None: none)."""
    # With a slope or a threshold it is no clamp of a range.
    if type(layer) is L.ReLU and not layer.negative_slope and not layer.threshold:
        return True, layer.max_value
    if type(layer) is L.Activation and activation_name(layer) in ("relu", "relu6"):
        return True, 6.0 if activation_name(layer) == "relu6" else None
    return False, None


def reads_mask(layer: keras.Layer) -> bool:
    """Whether a layer, or a class that it derives from, computes something else under a mask."""
    # What derives from a layer that reads masks is passed them, too, whatever it does with them.
    return any(cls in LAYERS and LAYERS[cls].reads_mask for cls in type(layer).__mro__)


def complaint(layer: keras.Layer) -> str | None:
    """Why `layer` has no integer kernel, whatever it is called on; None where it may have one."""
    found = find(layer)
    if found is None:
        is_activation = type(layer) is L.Activation
        return repr(activation_name(layer)) if is_activation else "no rule for this type of layer"
    activation = getattr(layer, "activation", None)
    # They are among the weights of the layer itself. PReLU has some once it has run.
    is_learned = isinstance(activation, L.PReLU) or getattr(activation, "weights", None)
    if found.kernel and is_learned:
        return f"needs an activation without weights, has {activation_name(layer)!r}"
    return found.unmet(layer)


def table() -> str:
    """The registry as a Markdown table, for the documentation."""
    header = ["Keras layer", "LiteRT operator", "grid of the output", "activations", "weights"]
    rows = [[*header, "condition"]]
    named = [(cls.__name__, row) for cls, row in LAYERS.items()]
    named += [(f"Activation({name!r})", row) for name, row in ACTIVATIONS.items()]
    named += [(f"keras.ops: {name}", row) for name, row in OPERATIONS.items()]
    for name, row in named:
        condition = "; ".join(["channels last"] * row.channels_last + [row.note] * bool(row.note))
        rows.append([name, row.op, row.output, _activations(row), _weights(row), condition])
    return tables.markdown(rows, left=len(rows[0]))


def _activations(row: Rule) -> str:
    """The widths of a layer's activations, in words."""
    if row.output == Output.FLOAT:
        return "float32"
    has_int16 = row.tabled or all(OPERATORS[op].int16 is not None for op in row.operators)
    # What moves codes moves any: by other operators, if need be (`export.blocks`).
    return "int8, int16" if has_int16 or row.output == Output.PASS_THROUGH else "int8"


def _weights(row: Rule) -> str:
    """The widths of a layer's weights, in words: packed where all its operators can."""
    if not row.kernel:
        return ""
    first, *others = (OPERATORS[op].int4 for op in row.operators)
    packed = " and ".join(f"int{bits}" for bits in first if all(bits in x for x in others))
    return f"int8 per channel, packed int4 under {packed}" if packed else "int8 per channel"
