"""One table: what each Keras layer becomes on the device, and on which grid its output lies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq import fits, kernels
from kerasq.grid import Grid
from kerasq.layers import Constant, Function, Gelu, Matmul, Scale
from kerasq.litert.operators import OPERATORS
from kerasq.support import tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How one layer class is quantized.

    Attributes:
        op: the LiteRT operator that it becomes ("-": none, it is merged or dropped).
        output: grid of the output. "range": learned; "input": that of the input, rounded to it;
            "same": that of the input, values only copied; "fixed": one of `grids`, which the
            kernel insists on; "merged": the layer becomes part of the one before it; "parts": it
            becomes several layers (`kerasq.prepare.decompose`); "float": it stays float.
        kernel: attribute of the weight that is quantized per channel, or None.
        bias: attribute of the bias, None where there is none.
        channels: the number of trailing axes of `kernel` that make up the channels.
        transposed: whether the last axis of `kernel` is that of the inputs, the one before it that
            of the channels.
        simulate: the integer kernel in `kerasq.kernels`, not used where values are only copied.
            For layers with a `kernel` it takes accumulators.
        grids: the grids of "fixed", by bits.
        options: for an operator that the export makes itself, because the converter does not: the
            class of its options and their values, from the layer.
        fits: of the layer and the arguments of a call, whether that has an integer form; where it
            has none, the layer stays float. None: it always has.
        note: a condition that the table in the documentation states.
    """

    op: str
    output: str
    kernel: str | None = None
    bias: str = "bias"
    channels: int = 1
    transposed: bool = False
    simulate: Callable[..., Any] = kernels.pointwise
    grids: dict[int, Grid] = dataclasses.field(default_factory=dict)
    options: Callable[[keras.Layer], tuple[str, dict]] | None = None
    fits: Callable[..., bool] | None = None
    note: str = ""

    def flatten(self, kernel: Any) -> Any:
        """A kernel with the channels in its last axis."""
        if self.transposed:
            return _transpose(kernel)
        head = kernel.shape[: len(kernel.shape) - self.channels]
        return keras.ops.reshape(kernel, (*head, -1))

    def unflatten(self, kernel: Any, shape: Any) -> Any:
        """The kernel of `shape` that `flatten` was called on."""
        if self.transposed:
            return _transpose(kernel)
        return keras.ops.reshape(kernel, shape)


def _transpose(kernel: Any) -> Any:
    """A kernel with its last two axes exchanged."""
    *head, first, last = range(len(kernel.shape))
    return keras.ops.transpose(kernel, (*head, last, first))


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

# What LiteRT has no integer kernel for, or none that kerasq simulates.
_FLOAT: tuple[type, ...] = (
    keras.layers.AdditiveAttention,
    keras.layers.Bidirectional,
    keras.layers.Conv3D,
    keras.layers.Conv3DTranspose,
    keras.layers.GRU,
    keras.layers.GroupNormalization,
    keras.layers.LSTM,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.RNN,
    keras.layers.SimpleRNN,
    keras.layers.UnitNormalization,
)

# A function of each value alone that has no kernel of its own.
_LOOKUP = Rule(op="CAST, ADD, GATHER", output="range", simulate=kernels.lookup)

# Attention by several heads.
_HEADS = Rule(
    op="FULLY_CONNECTED, BATCH_MATMUL, SOFTMAX",
    output="parts",
    fits=fits.attention_fits,
    note="of sequences, without masks, gates or scores; else float",
)

# Images of another size; under "nearest" pixels are only copied.
_RESIZING = Rule(
    op="RESIZE_BILINEAR",
    output="input",
    simulate=kernels.resize_bilinear,
    note="channels last; bilinear, or nearest (RESIZE_NEAREST_NEIGHBOR, same)",
)
_NEAREST = Rule(op="RESIZE_NEAREST_NEIGHBOR", output="same")

LAYERS: dict[type, Rule] = {
    keras.layers.Conv2D: Rule(
        op="CONV_2D",
        output="range",
        kernel="kernel",
        simulate=kernels.convolution,
        note="channels last; a group for each channel becomes DepthwiseConv2D",
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
        note="channels last; a group for each channel becomes DepthwiseConv1D",
    ),
    keras.layers.DepthwiseConv1D: Rule(
        op="DEPTHWISE_CONV_2D",
        output="range",
        kernel="kernel",
        channels=2,
        simulate=kernels.depthwise,
        note="channels last",
    ),
    keras.layers.Conv2DTranspose: Rule(
        op="TRANSPOSE_CONV",
        output="range",
        kernel="kernel",
        transposed=True,
        simulate=kernels.rescale,
        note="channels last, not dilated",
    ),
    keras.layers.Conv1DTranspose: Rule(
        op="TRANSPOSE_CONV",
        output="range",
        kernel="kernel",
        transposed=True,
        simulate=kernels.rescale,
        note="channels last, not dilated",
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
    keras.layers.GlobalAveragePooling1D: Rule(op="MEAN", output="range", simulate=kernels.mean),
    keras.layers.GlobalAveragePooling2D: Rule(op="MEAN", output="range", simulate=kernels.mean),
    keras.layers.GlobalAveragePooling3D: Rule(op="MEAN", output="range", simulate=kernels.mean),
    keras.layers.AveragePooling3D: Rule(
        op="AVERAGE_POOL_2D", output="parts", note="becomes two AveragePooling2D"
    ),
    keras.layers.MaxPooling3D: Rule(
        op="MAX_POOL_2D", output="parts", note="becomes two MaxPooling2D"
    ),
    keras.layers.MaxPooling2D: Rule(op="MAX_POOL_2D", output="same"),
    keras.layers.MaxPooling1D: Rule(op="MAX_POOL_2D", output="same"),
    keras.layers.GlobalMaxPooling1D: Rule(op="REDUCE_MAX", output="same"),
    keras.layers.GlobalMaxPooling2D: Rule(op="REDUCE_MAX", output="same"),
    keras.layers.GlobalMaxPooling3D: Rule(op="REDUCE_MAX", output="same"),
    keras.layers.Flatten: Rule(op="RESHAPE", output="same"),
    keras.layers.Reshape: Rule(op="RESHAPE", output="same"),
    keras.layers.Permute: Rule(op="TRANSPOSE", output="same"),
    keras.layers.ZeroPadding2D: Rule(op="PAD", output="same"),
    keras.layers.ZeroPadding1D: Rule(op="PAD", output="same"),
    keras.layers.ZeroPadding3D: Rule(op="PAD", output="same"),
    keras.layers.Cropping1D: Rule(op="STRIDED_SLICE", output="same"),
    keras.layers.Cropping2D: Rule(op="STRIDED_SLICE", output="same"),
    keras.layers.Cropping3D: Rule(op="STRIDED_SLICE", output="same"),
    keras.layers.CenterCrop: Rule(op="STRIDED_SLICE", output="same", note="of larger images"),
    keras.layers.RepeatVector: Rule(op="TILE", output="same"),
    keras.layers.UpSampling1D: Rule(op="TILE", output="same"),
    keras.layers.UpSampling2D: _RESIZING,
    keras.layers.Resizing: _RESIZING,
    keras.layers.UpSampling3D: Rule(op="TILE", output="same"),
    **{layer: Rule(op="-", output="same") for layer in _ABSENT},
    keras.layers.ReLU: Rule(
        op="RELU",
        output="range",
        simulate=kernels.relu,
        note="no op behind a layer with a range; with a slope LeakyReLU, with more Function",
    ),
    keras.layers.LeakyReLU: Rule(
        op="LEAKY_RELU",
        output="range",
        simulate=kernels.leaky_relu,
        options=lambda layer: ("LeakyReluOptions", {"alpha": layer.negative_slope}),
    ),
    keras.layers.PReLU: Rule(
        op="RELU, SUB, DEPTHWISE_CONV_2D, ADD",
        output="parts",
        note="MUL where there is more than one slope a channel",
    ),
    keras.layers.ELU: Rule(op="ELU", output="range", note="with another alpha than 1 Function"),
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
        note="one axis, behind a Permute where it is not the last; no mask",
    ),
    Constant: Rule(
        op="QUANTIZE", output="range", simulate=kernels.constant, note="no op: a tensor of the file"
    ),
    Function: _LOOKUP,
    Matmul: Rule(op="BATCH_MATMUL", output="range", simulate=kernels.matmul),
    keras.layers.Dot: Rule(
        op="BATCH_MATMUL",
        output="parts",
        fits=fits.dot_fits,
        note="of sequences or vectors, not normalized; else float",
    ),
    keras.layers.EinsumDense: Rule(
        op="FULLY_CONNECTED",
        output="parts",
        kernel="kernel",
        fits=fits.einsum_fits,
        note="becomes Dense where the kernel is one between last axes; else float",
    ),
    keras.layers.TimeDistributed: Rule(
        op="FULLY_CONNECTED",
        output="parts",
        fits=fits.distributed_fits,
        note="of a Dense; else float",
    ),
    keras.layers.Attention: Rule(
        op="BATCH_MATMUL, SOFTMAX",
        output="parts",
        fits=fits.attention_fits,
        note="dot products of sequences, without masks; else float",
    ),
    keras.layers.MultiHeadAttention: _HEADS,
    keras.layers.GroupQueryAttention: _HEADS,
    keras.layers.Embedding: Rule(
        op="GATHER", output="float", note="int8 in the file where integer layers read it"
    ),
    **{layer: Rule(op="-", output="float") for layer in _FLOAT},
}

# Operations of `keras.ops`, and of operators, that move or pick values; by the names of their
# classes, which are not public.
OPERATIONS: dict[str, Rule] = {
    name: Rule(op=op, output="same", note="keeps the batch axis")
    for name, op in (
        ("BroadcastTo", "BROADCAST_TO"),
        ("Flip", "REVERSE_V2"),
        ("GetItem", "STRIDED_SLICE"),
        ("Moveaxis", "TRANSPOSE"),
        ("Repeat", "GATHER"),
        ("Roll", "CONCATENATION, STRIDED_SLICE"),
        ("Slice", "SLICE"),
        ("StopGradient", "-"),
        ("Split", "SPLIT"),
        ("Swapaxes", "TRANSPOSE"),
        ("Tile", "TILE"),
        ("Unstack", "UNPACK"),
    )
}

# The activations that become a lookup table.
FUNCTIONS = (
    "celu",
    "hard_shrink",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "selu",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "tanh_shrink",
)

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
        op="DEPTHWISE_CONV_2D, MUL", output="parts", note="becomes hard_sigmoid and Multiply"
    ),
    "silu": Rule(op="LOGISTIC, MUL", output="parts", note="becomes sigmoid and Multiply"),
    "hard_sigmoid": Rule(
        op="DEPTHWISE_CONV_2D", output="parts", note="becomes Scale and ReLU up to 1"
    ),
    "tanh": Rule(op="TANH", output="fixed", grids=_fixed(1 / 128, 0), simulate=kernels.tanh),
    **{
        name: dataclasses.replace(_LOOKUP, output="parts", note="becomes Function")
        for name in FUNCTIONS
    },
}

# An input of the model, or a boundary between grids: a wrapper around an Identity.
QUANTIZE = Rule(op="QUANTIZE", output="range")

# Layers that must have their channels last: LiteRT's kernels do.
_CHANNELS_LAST = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.Resizing,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.UpSampling2D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
)
# What else a layer's configuration must say, where LiteRT has no integer kernel for the rest.
_RESIZED = {"interpolation": ("bilinear", "nearest")}
_REQUIRED: dict[type, dict[str, tuple]] = {
    keras.layers.Conv1DTranspose: {"dilation_rate": ((1,),)},
    keras.layers.Conv2DTranspose: {"dilation_rate": ((1, 1),)},
    keras.layers.UpSampling2D: _RESIZED,
    keras.layers.Resizing: {
        **_RESIZED,
        "crop_to_aspect_ratio": (False,),
        "pad_to_aspect_ratio": (False,),
        "antialias": (False,),
    },
}

# What a layer's attributes may hold one of for each channel.
_PER_CHANNEL: dict[type, tuple[str, ...]] = {
    keras.layers.Normalization: ("mean", "variance"),
    keras.layers.Rescaling: ("scale", "offset"),
}


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
    rules = [*LAYERS.values(), *ACTIVATIONS.values()]
    kinds = ("range", "input", "same", "fixed")
    legal = {rule.op: rule for rule in rules if rule.op in OPERATORS and rule.output in kinds}
    legal |= {"GATHER": _LOOKUP, "-": Rule(op="-", output="same")}
    if not (isinstance(cls, type) and issubclass(cls, keras.layers.Layer)) or (
        cls.__module__.startswith("keras.src")
    ):
        raise ValueError(f"`cls` must be a layer class of your own. Received: {cls!r}.")
    if op not in legal:
        raise ValueError(f"`op` must be one of {sorted(legal)}. Received: op={op!r}.")
    if not isinstance(output, Grid) and output not in ("range", "same", "float"):
        raise ValueError(
            f"`output` must be 'range', 'same', 'float' or a Grid. Received: output={output!r}."
        )
    kept = legal[op].output in ("same", "input") and op != "-"
    if kept and output not in ("same", "float"):
        raise ValueError(
            f"`output` must be 'same' for an operator that keeps the grid of its input. "
            f"Received: op={op!r}, output={output!r}."
        )
    if kept and output == "same":
        output = legal[op].output
    weighted = op in OPERATORS and OPERATORS[op].channels is not None
    if weighted != (kernel is not None) and output != "float":
        raise ValueError(
            f"`kernel` must name the weight of an operator that has one, and only of such. "
            f"Received: op={op!r}, kernel={kernel!r}."
        )
    _REGISTERED[cls] = dataclasses.replace(
        legal[op],
        output="fixed" if isinstance(output, Grid) else output,
        grids={output.bits: output} if isinstance(output, Grid) else {},
        kernel=kernel,
        bias=bias,
        channels=channels,
        transposed=False,
        note="registered",
    )


def activation_name(layer: keras.Layer) -> str:
    """The name of a layer's activation function: "linear" where it has none."""
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    name = keras.activations.serialize(function)
    if isinstance(name, str) and getattr(keras.activations, name, None) is not function:
        return f"{name} of your own"
    return name if isinstance(name, str) else type(function).__name__


def find(layer: keras.Layer) -> Rule | None:
    """The rule for `layer`, or None where there is none."""
    if type(layer) is keras.layers.Activation:
        return ACTIVATIONS.get(activation_name(layer))
    if not isinstance(layer, keras.Layer):
        return OPERATIONS.get(type(layer).__name__)
    found = _REGISTERED.get(type(layer)) or LAYERS.get(type(layer))
    return _NEAREST if found is _RESIZING and layer.interpolation == "nearest" else found


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


def is_grouped(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a convolution in groups, whose weights must have 8 bits."""
    return getattr(layer, "groups", 1) > 1


def relu_limit(layer: keras.Layer) -> tuple[bool, float | None]:
    """Whether `layer` is a ReLU, and its upper limit (None: none)."""
    if type(layer) is keras.layers.ReLU and not layer.negative_slope and not layer.threshold:
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
    if type(layer) is keras.layers.Softmax and not isinstance(layer.axis, int):
        return f"{name}: needs one axis, has axis={layer.axis!r}"
    for key in _PER_CHANNEL.get(type(layer), ()):
        shape = np.shape(getattr(layer, key, ()))
        if np.prod(shape) not in (1, *shape[-1:]):
            return f"{name}: needs one {key} a channel, the last axis, has {key} of shape {shape}"
    required = dict(_REQUIRED.get(type(layer), {}))
    if type(layer) in _CHANNELS_LAST:
        required = {"data_format": ("channels_last",), **required}
    for key, legal in required.items():
        if getattr(layer, key) not in legal:
            return f"{name}: needs {key}={legal[0]!r}, has {key}={getattr(layer, key)!r}"
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
    named += [(f"keras.ops: {name}", row) for name, row in OPERATIONS.items()]
    for name, row in named:
        operators = [OPERATORS[op] for op in row.op.split(", ") if op != "-"]
        wide = all(operator.int16 is not None for operator in operators)
        weights = "int8 per channel" if row.kernel else ""
        if row.kernel:
            common = [bits for bits in operators[0].int4 if all(bits in x.int4 for x in operators)]
            packed = " and ".join(f"int{bits}" for bits in common)
            weights += f", packed int4 under {packed}" if packed else ""
        activations = "int8, int16" if wide else "int8"
        if row.output == "float":
            activations = "float32"
        rows.append([name, row.op, row.output, activations, weights, row.note])
    return tables.markdown(rows, left=len(rows[0]))
