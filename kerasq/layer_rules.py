"""The one table: what each Keras layer becomes on the device, and on which grid its output lies."""

import dataclasses

import keras
import numpy as np

from kerasq import fits
from kerasq.grid import Grid
from kerasq.kernels.int16 import inverse_root_grid, masked_grid
from kerasq.layers import (
    ActivityRegularizer,
    AddLoss,
    ArgMax,
    ArgMin,
    Compare,
    Constant,
    Deviation,
    Divide,
    Einsum,
    FrameConv2D,
    Function,
    Gelu,
    GridMean,
    Held,
    InverseRoot,
    Masked,
    Matmul,
    Max,
    Mean,
    Min,
    Norm,
    Pad,
    Requantize,
    Scale,
    Select,
    SequenceLSTM,
    Stack,
    Sum,
    Take,
    UnitAdd,
    UnitMatmul,
    Variance,
)
from kerasq.rule import Output, Rule

L = keras.layers


def _fixed(scale: float, zero_point: int) -> dict[int, Grid]:
    """A grid for int8, and the one that all int16 kernels with a fixed grid have."""
    return {
        8: Grid(scale=np.float32(scale), zero_point=np.int32(zero_point)),
        16: Grid(scale=np.float32(1 / 32768), zero_point=np.int32(0), bits=16),
    }


# The kernels know no other grid for these outputs (LiteRT 8-bit quantization specification).
_PROBABILITY = _fixed(1 / 256, -128)
_SIGNED = _fixed(1 / 128, 0)
# About 1: lengths that were divided by themselves, roughly.
_AROUND_ONE = {16: Grid(scale=np.float32(2.0**-13), zero_point=np.int32(0), bits=16)}
_LOGARITHM = {8: Grid(scale=np.float32(1 / 16), zero_point=np.int32(127))}

# Keras 3.10 does not have them.
ADAPTIVE_AVERAGE, ADAPTIVE_MAX = (
    tuple(getattr(L, name) for name in dir(L) if name.startswith(f"Adaptive{kind}Pooling"))
    for kind in ("Average", "Max")
)

# An input of the model, or a boundary between grids.
QUANTIZE = Rule(operators=("QUANTIZE",), output=Output.LEARNED)

# By the classes that they are for. A subclass has a rule of its own, or none.
RULES: dict[tuple[type, ...], Rule] = {
    (L.Conv2D, L.Conv1D): Rule(
        operators=("CONV_2D",),
        output=Output.LEARNED,
        kernel="kernel",
        channels_last=True,
        note="a group for each channel becomes DepthwiseConv",
    ),
    (L.DepthwiseConv2D, L.DepthwiseConv1D): Rule(
        operators=("DEPTHWISE_CONV_2D",),
        output=Output.LEARNED,
        kernel="kernel",
        # Inputs and multiplier, the last two axes: a channel of the output for each pair.
        channels=2,
        channels_last=True,
    ),
    (L.Conv2DTranspose, L.Conv1DTranspose): Rule(
        operators=("TRANSPOSE_CONV",),
        output=Output.LEARNED,
        kernel="kernel",
        # Keras has the outputs before the inputs here.
        transposed=True,
        channels_last=True,
        fits=fits.transposed_fits,
        note="of known size where dilated; CONV_2D with the kernel turned round then",
    ),
    (L.SeparableConv2D, L.SeparableConv1D): Rule(
        operators=("DEPTHWISE_CONV_2D", "CONV_2D"),
        output=Output.DECOMPOSED,
        kernel="pointwise_kernel",
        channels_last=True,
    ),
    (L.Conv3D,): Rule(
        operators=("PAD", "STRIDED_SLICE", "CONCATENATION", "CONV_2D"),
        output=Output.DECOMPOSED,
        kernel="kernel",
        channels_last=True,
        fits=fits.volume_fits,
        note="of known size; becomes FrameConv2D",
    ),
    (L.Conv3DTranspose,): Rule(
        operators=("PAD", "STRIDED_SLICE", "CONCATENATION", "CONV_2D"),
        output=Output.DECOMPOSED,
        kernel="kernel",
        channels_last=True,
        fits=fits.volume_fits,
        note="of known size; becomes FrameConv2D, of values with zeros between them",
    ),
    (FrameConv2D,): Rule(
        operators=("CONV_2D",),
        output=Output.LEARNED,
        kernel="kernel",
        channels_last=True,
        note="of all frames of a Conv3D, below each other",
    ),
    (L.Dense,): Rule(operators=("FULLY_CONNECTED",), output=Output.LEARNED, kernel="kernel"),
    # One operator that rounds once, where MUL and ADD of constants would round twice.
    (Scale,): Rule(
        operators=("DEPTHWISE_CONV_2D",),
        output=Output.LEARNED,
        kernel="kernel",
        note="what constants, Rescaling and others become",
    ),
    (L.BatchNormalization,): Rule(
        operators=(),
        output=Output.FUSED,
        note="behind a layer with a kernel; alone, it becomes Scale, along the last axis",
    ),
    (L.Rescaling, L.Normalization): Rule(
        operators=("DEPTHWISE_CONV_2D",),
        output=Output.DECOMPOSED,
        fits=fits.constants_fit,
        note="of samples of known size; becomes Scale, of the sample as a vector if need be",
    ),
    (L.Add,): Rule(operators=("ADD",), output=Output.LEARNED),
    (L.Subtract,): Rule(operators=("SUB",), output=Output.LEARNED),
    # Under a mask Keras puts 1 in the place of what it leaves out.
    (L.Multiply,): Rule(operators=("MUL",), output=Output.LEARNED, reads_mask=True),
    (Divide,): Rule(
        operators=("CAST", "ADD", "GATHER", "MUL"),
        output=Output.DECOMPOSED,
        note="a reciprocal by Function, and Multiply",
    ),
    (L.Maximum,): Rule(operators=("MAXIMUM",), output=Output.LEARNED),
    (L.Minimum,): Rule(operators=("MINIMUM",), output=Output.LEARNED),
    (L.Average,): Rule(
        operators=("ADD", "DEPTHWISE_CONV_2D"),
        output=Output.DECOMPOSED,
        note="becomes Add and Scale",
    ),
    (L.Concatenate,): Rule(operators=("CONCATENATION",), output=Output.LEARNED),
    (Stack,): Rule(operators=("PACK",), output=Output.LEARNED),
    (Sum,): Rule(operators=("SUM",), output=Output.LEARNED),
    (Mean,): Rule(operators=("MEAN",), output=Output.LEARNED),
    (GridMean,): Rule(operators=("MEAN",), output=Output.INPUT),
    (Max,): Rule(operators=("REDUCE_MAX",), output=Output.PASS_THROUGH),
    (Min,): Rule(operators=("REDUCE_MIN",), output=Output.PASS_THROUGH),
    (Variance,): Rule(
        operators=("MEAN", "SUB", "MUL"),
        output=Output.DECOMPOSED,
        note="becomes Mean, Subtract, Multiply and Mean",
    ),
    (Deviation,): Rule(
        operators=("MEAN", "SUB", "MUL", "CAST", "ADD", "GATHER"),
        output=Output.DECOMPOSED,
        note="becomes Variance and Function",
    ),
    (Norm,): Rule(
        operators=("MUL", "SUM", "CAST", "ADD", "GATHER"),
        output=Output.DECOMPOSED,
        note="becomes Multiply, Sum and Function",
    ),
    (SequenceLSTM,): Rule(operators=("UNIDIRECTIONAL_SEQUENCE_LSTM",), output=Output.LEARNED),
    (Take,): Rule(operators=("GATHER",), output=Output.PASS_THROUGH),
    (Pad,): Rule(operators=("PAD",), output=Output.PASS_THROUGH, note="or MIRROR_PAD"),
    # The kernel wants one grid for both ends, so averages are rounded to that of what they are of.
    (L.AveragePooling2D, L.AveragePooling1D): Rule(
        operators=("AVERAGE_POOL_2D",),
        output=Output.INPUT,
        channels_last=True,
        note="MEAN where one window covers the sample",
    ),
    (L.AveragePooling3D,): Rule(
        operators=("AVERAGE_POOL_2D",),
        output=Output.DECOMPOSED,
        channels_last=True,
        note="becomes two AveragePooling2D",
    ),
    # MEAN has a range of its own, narrower than that of what it averages. This is the only one of
    # the three that Keras passes a mask to.
    (L.GlobalAveragePooling1D,): Rule(
        operators=("MEAN",),
        output=Output.LEARNED,
        reads_mask=True,
        channels_last=True,
        fits=fits.pooling_fits,
        note="of known length under a mask; SELECT_V2, SOFTMAX and BATCH_MATMUL then",
    ),
    (L.GlobalAveragePooling2D, L.GlobalAveragePooling3D): Rule(
        operators=("MEAN",), output=Output.LEARNED, channels_last=True
    ),
    (L.MaxPooling2D, L.MaxPooling1D): Rule(
        operators=("MAX_POOL_2D",), output=Output.PASS_THROUGH, channels_last=True
    ),
    (L.MaxPooling3D,): Rule(
        operators=("MAX_POOL_2D",),
        output=Output.DECOMPOSED,
        channels_last=True,
        note="becomes two MaxPooling2D",
    ),
    (L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D): Rule(
        operators=("REDUCE_MAX",), output=Output.PASS_THROUGH, channels_last=True
    ),
    ADAPTIVE_AVERAGE: Rule(
        operators=("AVERAGE_POOL_2D",),
        output=Output.DECOMPOSED,
        channels_last=True,
        fits=fits.adaptive_fits,
        note="to sizes that divide those of the image; becomes AveragePooling",
    ),
    ADAPTIVE_MAX: Rule(
        operators=("MAX_POOL_2D",),
        output=Output.DECOMPOSED,
        channels_last=True,
        fits=fits.adaptive_fits,
        note="to sizes that divide those of the image; becomes MaxPooling",
    ),
    (L.Flatten, L.Reshape): Rule(operators=("RESHAPE",), output=Output.PASS_THROUGH),
    (L.Permute,): Rule(operators=("TRANSPOSE",), output=Output.PASS_THROUGH),
    (L.ZeroPadding2D, L.ZeroPadding1D): Rule(
        operators=("PAD",), output=Output.PASS_THROUGH, channels_last=True
    ),
    (L.ZeroPadding3D,): Rule(operators=("PAD",), output=Output.PASS_THROUGH),
    (L.Cropping1D, L.Cropping2D, L.Cropping3D): Rule(
        operators=("STRIDED_SLICE",), output=Output.PASS_THROUGH
    ),
    (L.CenterCrop,): Rule(
        operators=("STRIDED_SLICE",),
        output=Output.DECOMPOSED,
        channels_last=True,
        fits=fits.image_fits,
        note="of images of known size; RESIZE_BILINEAR of smaller ones",
    ),
    (L.RepeatVector, L.UpSampling1D, L.UpSampling3D): Rule(
        operators=("TILE",), output=Output.PASS_THROUGH
    ),
    (L.UpSampling2D,): Rule(
        operators=("RESIZE_BILINEAR",),
        output=Output.INPUT,
        channels_last=True,
        required={"interpolation": ("bilinear", "nearest")},
        note="bilinear, or nearest (RESIZE_NEAREST_NEIGHBOR, same)",
    ),
    (L.Resizing,): Rule(
        operators=("RESIZE_BILINEAR",),
        output=Output.INPUT,
        channels_last=True,
        required={
            "interpolation": ("bilinear", "nearest"),
            "antialias": (False,),
            "fill_value": (0.0,),
        },
        fits=fits.image_fits,
        note="of images of known size; bilinear, or nearest (RESIZE_NEAREST_NEIGHBOR, same)",
    ),
    # Values of 0 are what it writes where it masks.
    (L.Masking,): Rule(
        operators=(), output=Output.PASS_THROUGH, required={"mask_value": (0.0,)}, note="of 0"
    ),
    (Requantize,): QUANTIZE,
    # Identities in inference.
    (
        L.Dropout,
        L.SpatialDropout1D,
        L.SpatialDropout2D,
        L.SpatialDropout3D,
        L.AlphaDropout,
        L.GaussianDropout,
        L.GaussianNoise,
        L.ActivityRegularization,
        ActivityRegularizer,
        L.RandomFlip,
        L.RandomRotation,
        L.RandomZoom,
        L.RandomTranslation,
        L.RandomShear,
        L.RandomPerspective,
        L.RandomErasing,
        L.RandomBrightness,
        L.RandomContrast,
        L.RandomSaturation,
        L.RandomHue,
        L.RandomSharpness,
        L.RandomGrayscale,
        L.RandomGaussianBlur,
        L.RandomPosterization,
        L.RandomInvert,
        L.RandomColorJitter,
        L.RandomColorDegeneration,
        L.Identity,
    ): Rule(operators=(), output=Output.PASS_THROUGH),
    (AddLoss,): Rule(
        operators=(),
        output=Output.PASS_THROUGH,
        fits=lambda *args, **kwargs: True,
        note="no op: what a layer that calls `add_loss` adds in training",
    ),
    (L.ReLU,): Rule(
        operators=("RELU",),
        output=Output.LEARNED,
        note="no op behind a layer with a range; with a slope LeakyReLU, with more Function",
    ),
    (L.LeakyReLU,): Rule(
        operators=("LEAKY_RELU",),
        output=Output.LEARNED,
        options=lambda layer: ("LeakyReluOptions", {"alpha": layer.negative_slope}),
    ),
    (L.PReLU,): Rule(
        operators=("RELU", "SUB", "DEPTHWISE_CONV_2D", "ADD"),
        output=Output.DECOMPOSED,
        note="MUL where there is more than one slope a channel",
    ),
    (L.ELU,): Rule(
        operators=("ELU",),
        output=Output.LEARNED,
        tabled=True,
        note="with another alpha than 1, and on int16, Function",
    ),
    (Gelu,): Rule(
        operators=("GELU",),
        output=Output.LEARNED,
        options=lambda layer: ("GeluOptions", {"approximate": layer.approximate}),
        tabled=True,
        note="on int16 Function",
    ),
    (L.Softmax,): Rule(
        operators=("SOFTMAX",),
        output=Output.FIXED,
        grids=_PROBABILITY,
        reads_mask=True,
        fits=fits.softmax_fits,
        note="over axes of each sample; between Permute and Reshape unless over the last one; "
        "masked scores by SELECT_V2, on int16",
    ),
    (L.UnitNormalization,): Rule(
        operators=("L2_NORMALIZATION",),
        output=Output.FIXED,
        grids={8: _SIGNED[8]},
        options=lambda _: ("L2NormOptions", {}),
        fits=fits.vectors_fit,
        note="of axes of known size; between Permute and Reshape unless over the last axis; 64 "
        "values and more as RMSNormalization",
    ),
    (L.LayerNormalization, L.GroupNormalization): Rule(
        operators=("MEAN", "SUB", "BATCH_MATMUL", "RSQRT", "MUL", "DEPTHWISE_CONV_2D"),
        output=Output.DECOMPOSED,
        fits=fits.normalization_fits,
        note="of samples of known size; on int16 inside; RSQRT as for InverseRoot",
    ),
    (L.RMSNormalization,): Rule(
        operators=("BATCH_MATMUL", "RSQRT", "MUL", "DEPTHWISE_CONV_2D"),
        output=Output.DECOMPOSED,
        fits=fits.normalization_fits,
        note="of samples of known size; on int16 inside; RSQRT as for InverseRoot",
    ),
    (Constant,): Rule(
        operators=("QUANTIZE",), output=Output.LEARNED, note="no op: a tensor of the file"
    ),
    # A function of each value alone that has no kernel of its own. GATHER's indices are int32, and
    # codes are negative, too.
    (Function,): Rule(operators=("CAST", "ADD", "GATHER"), output=Output.LEARNED),
    (Matmul,): Rule(
        operators=("BATCH_MATMUL",),
        output=Output.LEARNED,
        fits=fits.matmul_fits,
        note="of up to five axes",
    ),
    (InverseRoot,): Rule(
        operators=("RSQRT",),
        output=Output.DERIVED,
        derive=lambda layer, x, target: inverse_root_grid(layer, x, target.limits.least_root),
        options=lambda _: None,
        tabled=True,
        note="on int16, as a part of normalizations; GATHER where there is no such RSQRT",
    ),
    (UnitMatmul,): Rule(operators=("BATCH_MATMUL",), output=Output.FIXED, grids=_AROUND_ONE),
    (UnitAdd,): Rule(operators=("ADD",), output=Output.FIXED, grids=_AROUND_ONE),
    (ArgMax,): Rule(operators=("ARG_MAX",), output=Output.INDEX, note="of int16 behind a CAST"),
    (ArgMin,): Rule(operators=("ARG_MIN",), output=Output.INDEX, note="of int16 behind a CAST"),
    # As int32, since LiteRT's kernels on codes scale them first, and lose small differences.
    (Compare,): Rule(
        operators=("CAST", "GREATER"),
        output=Output.INDEX,
        note="with constants, or GREATER_EQUAL, LESS, ...; of two tensors behind SUB",
    ),
    (Select,): Rule(operators=("SELECT_V2",), output=Output.LEARNED),
    (Held,): Rule(operators=("SELECT_V2",), output=Output.INPUT, note="states under a mask"),
    (Masked,): Rule(
        operators=("SELECT_V2",),
        output=Output.DERIVED,
        derive=lambda layer, x, _: masked_grid(layer, x),
        note="on int16, between scores and a softmax",
    ),
    (L.Dot,): Rule(
        operators=("BATCH_MATMUL",),
        output=Output.DECOMPOSED,
        fits=fits.dot_fits,
        note="of sequences or vectors, normalized by UnitNormalization; else float",
    ),
    (Einsum,): Rule(
        operators=("BATCH_MATMUL",),
        output=Output.DECOMPOSED,
        note="becomes Matmul",
    ),
    (L.EinsumDense,): Rule(
        operators=("FULLY_CONNECTED",),
        output=Output.DECOMPOSED,
        kernel="kernel",
        fits=fits.einsum_fits,
        note="of sums over the whole of some axes; becomes Dense, else float",
    ),
    (L.TimeDistributed,): Rule(
        operators=("FULLY_CONNECTED",),
        output=Output.DECOMPOSED,
        fits=fits.distributed_fits,
        note="of a Dense, or on a sequence of known length without a mask; that is step by step",
    ),
    (L.Attention,): Rule(
        operators=("BATCH_MATMUL", "SOFTMAX"),
        output=Output.DECOMPOSED,
        fits=fits.attention_fits,
        reads_mask=True,
        note="dot products of sequences; masks as for Softmax",
    ),
    (L.AdditiveAttention,): Rule(
        operators=("ADD", "TANH", "FULLY_CONNECTED", "SOFTMAX", "BATCH_MATMUL"),
        output=Output.DECOMPOSED,
        fits=fits.attention_fits,
        reads_mask=True,
        note="of sequences; SUM without a scale; masks as for Softmax",
    ),
    (L.MultiHeadAttention, L.GroupQueryAttention): Rule(
        operators=("FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX"),
        output=Output.DECOMPOSED,
        fits=fits.attention_fits,
        reads_mask=True,
        note="of sequences, without gates and windows; masks as for Softmax; of images without",
    ),
    fits.CONV_RECURRENT: Rule(
        operators=("CONV_2D", "LOGISTIC", "TANH", "MUL"),
        output=Output.DECOMPOSED,
        channels_last=True,
        fits=fits.recurrence_fits,
        note="as LSTM, with convolutions",
    ),
    (L.LSTM, L.GRU, L.SimpleRNN, L.RNN, L.Bidirectional): Rule(
        operators=("FULLY_CONNECTED", "LOGISTIC", "TANH", "MUL"),
        output=Output.DECOMPOSED,
        fits=fits.recurrence_fits,
        note="of a fixed number of steps; step by step, else a float loop; masks by SELECT_V2",
    ),
    # It reads indices, which have no grid; its rows get one where a boundary stands behind it.
    (L.Embedding,): Rule(
        operators=("GATHER",),
        output=Output.FLOAT,
        note="int8 in the file where integer layers read it",
    ),
}
LAYERS: dict[type, Rule] = {cls: rule for classes, rule in RULES.items() for cls in classes}

# Those that resize, where they do not interpolate: pixels are only copied.
NEAREST: dict[type, Rule] = {
    cls: dataclasses.replace(
        LAYERS[cls], operators=("RESIZE_NEAREST_NEIGHBOR",), output=Output.PASS_THROUGH
    )
    for cls in (L.UpSampling2D, L.Resizing)
}

# Operations of `keras.ops`, and of operators, that move, pick or compare values; by the names of
# their classes, which are not public.
OPERATIONS: dict[str, Rule] = {
    name: Rule(operators=tuple(operators), output=Output.PASS_THROUGH, note="keeps the batch axis")
    for name, *operators in (
        ("BroadcastTo", "BROADCAST_TO"),
        ("DepthToSpace", "DEPTH_TO_SPACE"),
        ("Flip", "REVERSE_V2"),
        ("GetItem", "STRIDED_SLICE"),
        ("Moveaxis", "TRANSPOSE"),
        ("Repeat", "GATHER"),
        ("Roll", "CONCATENATION", "STRIDED_SLICE"),
        ("Slice", "SLICE"),
        ("SpaceToDepth", "SPACE_TO_DEPTH"),
        ("StopGradient",),
        ("Split", "SPLIT"),
        ("Swapaxes", "TRANSPOSE"),
        ("Tile", "TILE"),
        ("Unstack", "UNPACK"),
    )
}

# Values keep their grid, and their places are integers that lie on none.
OPERATIONS["TopK"] = dataclasses.replace(
    OPERATIONS["Slice"],
    operators=("TOPK_V2",),
    required={"sorted": (True,)},
    note="sorted; of values and their places",
)
OPERATIONS |= {"Argmax": LAYERS[ArgMax], "Argmin": LAYERS[ArgMin]}
COMPARISONS = {
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Less": "less",
    "LessEqual": "less_equal",
    "Equal": "equal",
    "NotEqual": "not_equal",
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
    "linear": Rule(operators=(), output=Output.PASS_THROUGH),
    "relu": LAYERS[L.ReLU],
    "relu6": LAYERS[L.ReLU],
    "softmax": LAYERS[L.Softmax],
    "log_softmax": Rule(
        operators=("LOG_SOFTMAX",),
        output=Output.FIXED,
        grids=_LOGARITHM,
        note="smaller values than -15.9 are cut",
    ),
    "elu": LAYERS[L.ELU],
    "sigmoid": Rule(operators=("LOGISTIC",), output=Output.FIXED, grids=_PROBABILITY),
    "gelu": Rule(
        operators=("GELU",),
        output=Output.LEARNED,
        options=lambda _: ("GeluOptions", {"approximate": False}),
        tabled=True,
        note="on int16 Function",
    ),
    "exponential": Rule(
        operators=("EXP",),
        output=Output.LEARNED,
        options=lambda _: ("ExpOptions", {}),
        tabled=True,
    ),
    "glu": Rule(
        operators=("SPLIT", "LOGISTIC", "MUL"),
        output=Output.DECOMPOSED,
        note="becomes sigmoid and Multiply of halves",
    ),
    "hard_silu": Rule(
        operators=("DEPTHWISE_CONV_2D", "MUL"),
        output=Output.DECOMPOSED,
        note="becomes hard_sigmoid and Multiply",
    ),
    "silu": Rule(
        operators=("LOGISTIC", "MUL"),
        output=Output.DECOMPOSED,
        note="becomes sigmoid and Multiply",
    ),
    "hard_sigmoid": Rule(
        operators=("DEPTHWISE_CONV_2D",),
        output=Output.DECOMPOSED,
        note="becomes Scale and ReLU up to 1",
    ),
    "tanh": Rule(operators=("TANH",), output=Output.FIXED, grids=_SIGNED),
    **dict.fromkeys(
        FUNCTIONS,
        Rule(
            operators=LAYERS[Function].operators,
            output=Output.DECOMPOSED,
            note="becomes Function",
        ),
    ),
}
