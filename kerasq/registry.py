"""One table: what each Keras layer becomes on the device, and on which grid its output lies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq import kernels, tables
from kerasq.grid import Grid
from kerasq.layers import Gelu, Scale
from kerasq.operators import OPERATORS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How one layer class is quantized.

    Attributes:
        op: the LiteRT operator that it becomes ("-": none, it is merged or dropped).
        output: grid of the output. "range": learned; "input": that of the input, rounded to it;
            "same": that of the input, values only copied; "fixed": one of `grids`, which the
            kernel insists on; "merged": the layer becomes part of the one before it; "parts": it
            becomes several layers (`kerasq.prepare.separate`).
        kernel: attribute of the weight that is quantized per channel, or None.
        channels: the number of trailing axes of `kernel` that make up the channels.
        simulate: the integer kernel in `kerasq.kernels`, not used where values are only copied.
            For layers with a `kernel` it takes accumulators.
        grids: the grids of "fixed", by bits.
        options: for an operator that the export makes itself, because the converter does not: the
            class of its options and their values, from the layer.
        note: a condition that the table in the documentation states.
    """

    op: str
    output: str
    kernel: str | None = None
    channels: int = 1
    simulate: Callable[..., Any] = kernels.pointwise
    grids: dict[int, Grid] = dataclasses.field(default_factory=dict)
    options: Callable[[keras.Layer], tuple[str, dict]] | None = None
    note: str = ""


def _fixed(scale: float, zero_point: int) -> dict[int, Grid]:
    """A grid for int8, and the one that all int16 kernels with a fixed grid have."""
    return {
        8: Grid(scale=np.float32(scale), zero_point=np.int32(zero_point)),
        16: Grid(scale=np.float32(1 / 32768), zero_point=np.int32(0), bits=16),
    }


_PROBABILITY = _fixed(1 / 256, -128)

# Identities in inference.
_ABSENT: tuple[type, ...] = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomZoom,
    keras.layers.RandomTranslation,
    keras.layers.RandomShear,
    keras.layers.RandomPerspective,
    keras.layers.RandomErasing,
    keras.layers.RandomBrightness,
    keras.layers.RandomContrast,
    keras.layers.RandomSaturation,
    keras.layers.RandomHue,
    keras.layers.RandomSharpness,
    keras.layers.RandomGrayscale,
    keras.layers.RandomGaussianBlur,
    keras.layers.RandomPosterization,
    keras.layers.RandomInvert,
    keras.layers.RandomColorJitter,
    keras.layers.RandomColorDegeneration,
    keras.layers.Identity,
)

LAYERS: dict[type, Rule] = {
    keras.layers.Conv2D: Rule(
        op="CONV_2D",
        output="range",
        kernel="kernel",
        simulate=kernels.convolution,
        note="channels last, one group",
    ),
    keras.layers.DepthwiseConv2D: Rule(
        op="DEPTHWISE_CONV_2D",
        output="range",
        kernel="kernel",
        channels=2,
        simulate=kernels.depthwise,
        note="channels last",
    ),
    keras.layers.Conv1D: Rule(
        op="CONV_2D",
        output="range",
        kernel="kernel",
        simulate=kernels.convolution,
        note="channels last, one group",
    ),
    keras.layers.DepthwiseConv1D: Rule(
        op="DEPTHWISE_CONV_2D",
        output="range",
        kernel="kernel",
        channels=2,
        simulate=kernels.depthwise,
        note="channels last",
    ),
    keras.layers.SeparableConv2D: Rule(
        op="DEPTHWISE_CONV_2D, CONV_2D",
        output="parts",
        kernel="pointwise_kernel",
        note="channels last",
    ),
    keras.layers.SeparableConv1D: Rule(
        op="DEPTHWISE_CONV_2D, CONV_2D",
        output="parts",
        kernel="pointwise_kernel",
        note="channels last",
    ),
    keras.layers.Dense: Rule(
        op="FULLY_CONNECTED",
        output="range",
        kernel="kernel",
        simulate=kernels.fully_connected,
    ),
    Scale: Rule(
        op="DEPTHWISE_CONV_2D",
        output="range",
        kernel="kernel",
        simulate=kernels.depthwise,
        note="what constants, Rescaling and others become",
    ),
    keras.layers.BatchNormalization: Rule(
        op="-", output="merged", note="behind a layer with a kernel; alone, it becomes Scale"
    ),
    keras.layers.Rescaling: Rule(op="DEPTHWISE_CONV_2D", output="parts", note="becomes Scale"),
    keras.layers.Normalization: Rule(op="DEPTHWISE_CONV_2D", output="parts", note="becomes Scale"),
    keras.layers.Add: Rule(op="ADD", output="range", simulate=kernels.add),
    keras.layers.Subtract: Rule(op="SUB", output="range", simulate=kernels.subtract),
    keras.layers.Multiply: Rule(op="MUL", output="range", simulate=kernels.multiply),
    keras.layers.Maximum: Rule(op="MAXIMUM", output="range", simulate=kernels.on_one_grid),
    keras.layers.Minimum: Rule(op="MINIMUM", output="range", simulate=kernels.on_one_grid),
    keras.layers.Average: Rule(
        op="ADD, DEPTHWISE_CONV_2D", output="parts", note="becomes Add and Scale"
    ),
    keras.layers.Concatenate: Rule(
        op="CONCATENATION", output="range", simulate=kernels.on_one_grid
    ),
    keras.layers.AveragePooling2D: Rule(
        op="AVERAGE_POOL_2D", output="input", simulate=kernels.average_pool
    ),
    keras.layers.AveragePooling1D: Rule(
        op="AVERAGE_POOL_2D", output="input", simulate=kernels.average_pool
    ),
    keras.layers.GlobalAveragePooling2D: Rule(
        op="AVERAGE_POOL_2D", output="parts", note="becomes AveragePooling2D and Reshape"
    ),
    keras.layers.GlobalAveragePooling1D: Rule(
        op="AVERAGE_POOL_2D", output="parts", note="becomes AveragePooling1D and Reshape"
    ),
    keras.layers.MaxPooling2D: Rule(op="MAX_POOL_2D", output="same"),
    keras.layers.MaxPooling1D: Rule(op="MAX_POOL_2D", output="same"),
    keras.layers.GlobalMaxPooling1D: Rule(op="REDUCE_MAX", output="same"),
    keras.layers.GlobalMaxPooling2D: Rule(op="REDUCE_MAX", output="same"),
    keras.layers.Flatten: Rule(op="RESHAPE", output="same"),
    keras.layers.Reshape: Rule(op="RESHAPE", output="same"),
    keras.layers.Permute: Rule(op="TRANSPOSE", output="same"),
    keras.layers.ZeroPadding2D: Rule(op="PAD", output="same"),
    keras.layers.ZeroPadding1D: Rule(op="PAD", output="same"),
    **{layer: Rule(op="-", output="same") for layer in _ABSENT},
    keras.layers.ReLU: Rule(
        op="RELU",
        output="range",
        simulate=kernels.relu,
        note="no op behind a layer with a range; with a slope it becomes LeakyReLU; no threshold",
    ),
    keras.layers.LeakyReLU: Rule(
        op="LEAKY_RELU",
        output="range",
        simulate=kernels.leaky_relu,
        options=lambda layer: ("LeakyReluOptions", {"alpha": layer.negative_slope}),
    ),
    keras.layers.ELU: Rule(op="ELU", output="range", note="alpha 1"),
    Gelu: Rule(
        op="GELU",
        output="range",
        options=lambda layer: ("GeluOptions", {"approximate": layer.approximate}),
    ),
    keras.layers.Softmax: Rule(
        op="SOFTMAX",
        output="fixed",
        grids=_PROBABILITY,
        simulate=kernels.softmax,
        note="last axis, no mask",
    ),
}

ACTIVATIONS: dict[str, Rule] = {
    "linear": Rule(op="-", output="same"),
    "relu": LAYERS[keras.layers.ReLU],
    "relu6": LAYERS[keras.layers.ReLU],
    "softmax": LAYERS[keras.layers.Softmax],
    "elu": LAYERS[keras.layers.ELU],
    "sigmoid": Rule(op="LOGISTIC", output="fixed", grids=_PROBABILITY, simulate=kernels.sigmoid),
    "gelu": Rule(
        op="GELU", output="range", options=lambda _: ("GeluOptions", {"approximate": False})
    ),
    "exponential": Rule(op="EXP", output="range", options=lambda _: ("ExpOptions", {})),
    "hard_silu": Rule(
        op="HARD_SWISH",
        output="range",
        simulate=kernels.hard_swish,
        options=lambda _: ("HardSwishOptions", {}),
    ),
    "silu": Rule(op="LOGISTIC, MUL", output="parts", note="becomes sigmoid and Multiply"),
    "hard_sigmoid": Rule(
        op="DEPTHWISE_CONV_2D", output="parts", note="becomes Scale and ReLU up to 1"
    ),
    "tanh": Rule(op="TANH", output="fixed", grids=_fixed(1 / 128, 0), simulate=kernels.tanh),
}

# An input of the model, or a boundary between grids: a wrapper around an Identity.
QUANTIZE = Rule(op="QUANTIZE", output="range")

# What a layer's configuration must say, where LiteRT has no integer kernel for the rest.
_REQUIRED: dict[type, dict[str, tuple]] = {
    keras.layers.Conv2D: {"data_format": ("channels_last",), "groups": (1,)},
    keras.layers.DepthwiseConv2D: {"data_format": ("channels_last",)},
    keras.layers.SeparableConv2D: {"data_format": ("channels_last",)},
    keras.layers.Conv1D: {"data_format": ("channels_last",), "groups": (1,)},
    keras.layers.DepthwiseConv1D: {"data_format": ("channels_last",)},
    keras.layers.SeparableConv1D: {"data_format": ("channels_last",)},
    keras.layers.AveragePooling1D: {"data_format": ("channels_last",)},
    keras.layers.GlobalAveragePooling1D: {"data_format": ("channels_last",)},
    keras.layers.MaxPooling1D: {"data_format": ("channels_last",)},
    keras.layers.GlobalMaxPooling1D: {"data_format": ("channels_last",)},
    keras.layers.ZeroPadding1D: {"data_format": ("channels_last",)},
    keras.layers.AveragePooling2D: {"data_format": ("channels_last",)},
    keras.layers.GlobalAveragePooling2D: {"data_format": ("channels_last",)},
    keras.layers.MaxPooling2D: {"data_format": ("channels_last",)},
    keras.layers.GlobalMaxPooling2D: {"data_format": ("channels_last",)},
    keras.layers.ZeroPadding2D: {"data_format": ("channels_last",)},
    keras.layers.ReLU: {"threshold": (0, 0.0)},
    keras.layers.Softmax: {"axis": (-1,)},
    keras.layers.ELU: {"alpha": (1, 1.0)},
}


def activation_name(layer: keras.Layer) -> str:
    """The name of a layer's activation function: "linear" where it has none."""
    function = getattr(layer, "activation", None)
    return "linear" if function is None else keras.activations.serialize(function)


def find(layer: keras.Layer) -> Rule | None:
    """The rule for `layer`, or None where there is none."""
    if type(layer) is keras.layers.Activation:
        return ACTIVATIONS.get(activation_name(layer))
    return LAYERS.get(type(layer))


def rule(layer: keras.Layer) -> Rule:
    """The rule for `layer`.

    Raises:
        ValueError: where there is none.
    """
    found = find(layer)
    if found is None:
        raise ValueError(f"The layer must have a rule. Received: {complaint(layer)}.")
    return found


def copies(layer: keras.Layer) -> bool:
    """Whether a layer only moves or picks values: its output lies on the grid of its input."""
    found = find(layer)
    return found is not None and found.output == "same"


def is_dropped(layer: keras.Layer) -> bool:
    """Whether a layer leaves no operator behind, such as Dropout: its output is its input."""
    return copies(layer) and rule(layer).op == "-"


def relu_limit(layer: keras.Layer) -> tuple[bool, float | None]:
    """Whether `layer` is a ReLU, and its upper limit (None: none)."""
    if type(layer) is keras.layers.ReLU and not layer.negative_slope:
        return True, layer.max_value
    if type(layer) is keras.layers.Activation and activation_name(layer) in ("relu", "relu6"):
        return True, 6.0 if activation_name(layer) == "relu6" else None
    return False, None


def complaint(layer: keras.Layer) -> str | None:
    """Why `layer` cannot be quantized, or None where it can."""
    name = f"{layer.name!r} ({type(layer).__name__})"
    if find(layer) is None:
        if type(layer) is keras.layers.Activation:
            return f"{name}: activation {activation_name(layer)!r} has no integer kernel here"
        return f"{name}: this layer type has no rule"
    activation = activation_name(layer)
    if activation not in ACTIVATIONS:
        return f"{name}: activation {activation!r} has no integer kernel here"
    for key, legal in _REQUIRED.get(type(layer), {}).items():
        if getattr(layer, key) not in legal:
            return f"{name}: needs {key}={legal[0]!r}, has {key}={getattr(layer, key)!r}"
    if type(layer) is keras.layers.ReLU and layer.negative_slope and layer.max_value is not None:
        return f"{name}: needs negative_slope=0.0 or max_value=None, has neither"
    return None


def table() -> str:
    """The registry as a Markdown table, for the documentation."""
    rows = [
        [
            "Keras layer",
            "LiteRT operator",
            "grid of the output",
            "activations",
            "weights",
            "condition",
        ]
    ]
    named = [(cls.__name__, row) for cls, row in LAYERS.items()]
    named += [(f"Activation({name!r})", row) for name, row in ACTIVATIONS.items()]
    for name, row in named:
        operators = [OPERATORS[op] for op in row.op.split(", ") if op != "-"]
        wide = all(operator.int16 is not None for operator in operators)
        weights = "int8 per channel" if row.kernel else ""
        if row.kernel:
            common = [bits for bits in operators[0].int4 if all(bits in x.int4 for x in operators)]
            packed = [f"int{bits}" for bits in common]
            weights += f", packed int4 under {' and '.join(packed)}"
        activations = "int8, int16" if wide else "int8"
        rows.append([name, row.op, row.output, activations, weights, row.note])
    return tables.markdown(rows, left=len(rows[0]))
