"""LiteRT's default kernels: XNNPACK where its delegate takes an operator, else its own.

Widths without a row have no kernel that is simulated. Read off LiteRT 2.3, and checked against the
interpreter in tests/test_kernels.py and tests/test_kernels_int16.py, and on an emulated Arm by
tools/arm64.
"""

import dataclasses

from kerasq.kernels import AccumulatorKernel, Kernel, any_width, int8, int16, lstm
from kerasq.kernels import accumulators as sums
from kerasq.litert.operators import OPERATORS
from kerasq.scheme import FLOAT_BITS
from kerasq.targets.target import Limits, Target

KERNELS: dict[tuple[str, int], Kernel] = {
    ("ADD", 8): int8.add,
    ("ADD", 16): int16.add,
    ("AVERAGE_POOL_2D", 8): int8.average_pool,
    ("AVERAGE_POOL_2D", 16): any_width.average_pool,
    ("BATCH_MATMUL", 8): int8.matmul,
    ("BATCH_MATMUL", 16): int16.matmul,
    ("CONCATENATION", 8): any_width.on_one_grid,
    ("CONCATENATION", 16): any_width.on_one_grid,
    ("ELU", 8): int8.elu,
    ("EXP", 8): int8.tabled,
    ("GATHER", 8): any_width.lookup,
    ("GATHER", 16): any_width.lookup,
    ("GELU", 8): int8.gelu,
    ("L2_NORMALIZATION", 8): int8.normalize,
    ("LEAKY_RELU", 8): int8.leaky_relu,
    ("LEAKY_RELU", 16): any_width.leaky_relu,
    ("LOGISTIC", 8): int8.tabled,
    ("LOGISTIC", 16): int16.sigmoid,
    ("LOG_SOFTMAX", 8): int8.log_softmax,
    ("MAXIMUM", 8): any_width.on_one_grid,
    ("MAXIMUM", 16): any_width.on_one_grid,
    ("MEAN", 8): int8.mean,
    ("MEAN", 16): int16.mean,
    ("MINIMUM", 8): any_width.on_one_grid,
    ("MINIMUM", 16): any_width.on_one_grid,
    ("MUL", 8): int8.multiply,
    ("MUL", 16): int16.multiply,
    ("PACK", 8): any_width.on_one_grid,
    ("PACK", 16): any_width.on_one_grid,
    ("QUANTIZE", 8): int8.requantize,
    ("QUANTIZE", 16): int16.requantize,
    ("QUANTIZE", FLOAT_BITS): any_width.quantize,
    ("RELU", 8): int8.relu,
    ("RELU", 16): any_width.relu,
    ("RESIZE_BILINEAR", 8): int8.resize_bilinear,
    ("RESIZE_BILINEAR", 16): int16.resize_bilinear,
    ("SELECT_V2", 8): any_width.on_one_grid,
    ("SELECT_V2", 16): any_width.on_one_grid,
    ("SOFTMAX", 8): int8.softmax,
    ("SOFTMAX", 16): int16.softmax,
    ("SUB", 8): int8.subtract,
    ("SUB", 16): int16.subtract,
    ("SUM", 8): int8.total,
    ("SUM", 16): int16.total,
    ("TANH", 8): int8.tabled,
    ("TANH", 16): int16.tanh,
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", 8): lstm.sequence,
}

# XNNPACK takes int8 weights; packed ones only in FULLY_CONNECTED. Nothing on int16.
ACCUMULATOR_KERNELS: dict[tuple[str, int, int], AccumulatorKernel] = {
    ("CONV_2D", 8, 8): sums.rescale,
    ("CONV_2D", 16, 8): sums.rescale_15_bits,
    ("CONV_2D", 16, 4): sums.rescale_15_bits,
    ("DEPTHWISE_CONV_2D", 8, 8): sums.rescale,
    ("DEPTHWISE_CONV_2D", 16, 8): sums.rescale_15_bits,
    ("FULLY_CONNECTED", 8, 8): sums.rescale,
    ("FULLY_CONNECTED", 8, 4): sums.rescale,
    ("FULLY_CONNECTED", 16, 8): sums.rescale_in_double,
    ("FULLY_CONNECTED", 16, 4): sums.rescale_in_double,
    ("TRANSPOSE_CONV", 8, 8): sums.rescale,
    ("TRANSPOSE_CONV", 16, 8): sums.rescale_15_bits,
}

# Where the processor is known. XNNPACK has no integer averages, RELU onto no other grid, and
# CONCATENATION of five at most.
_ON_ONE = {
    **OPERATORS,
    "ADD": dataclasses.replace(OPERATORS["ADD"], one_scale=True),
    "AVERAGE_POOL_2D": dataclasses.replace(OPERATORS["AVERAGE_POOL_2D"], by_others=True),
    "CONCATENATION": dataclasses.replace(OPERATORS["CONCATENATION"], inputs=5),
    "RELU": dataclasses.replace(OPERATORS["RELU"], by_others=True),
}

# What of packed weights on int8 XNNPACK leaves to LiteRT's own kernels, those round otherwise on
# each processor: weights are stored as int8 there.
_ON_ANY = {
    **_ON_ONE,
    "CONV_2D": dataclasses.replace(OPERATORS["CONV_2D"], int4={16: 8}),
    # Whose ties hang on the number of channels: not measured on Arm for sums of few codes.
    "DEPTHWISE_CONV_2D": dataclasses.replace(OPERATORS["DEPTHWISE_CONV_2D"], int4={}),
    "FULLY_CONNECTED": dataclasses.replace(OPERATORS["FULLY_CONNECTED"], int4_odd=False),
}

LITERT = Target(
    name="litert",
    runtime="litert",
    operators=_ON_ANY,
    kernels=KERNELS,
    accumulator_kernels=ACCUMULATOR_KERNELS,
    limits=Limits(
        # Accumulators have room left in int32, and in the 48 bits that LiteRT rescales. Reached by
        # channels whose weights are nearly all 0, as folding a BatchNormalization may leave them.
        # XNNPACK's kernels on packed weights multiply by 16 times the weights, and so the bias.
        bias={(8, 8): 2.0**30, (8, 4): 2.0**26, (16, 8): 2.0**40, (16, 4): 2.0**40},
        accumulator_bits={8: 32, 16: 64},
        # XNNPACK's delegate refuses to load a model with 256 or more, or leaves the operator to
        # kernels that round otherwise; LiteRT's int16 kernels overflow somewhere beyond.
        multiplier=256.0,
        # LiteRT's own int8 ADD, which runs where an input's steps are below 2^-10 of the output's,
        # keeps sums in 16 bits, and wraps around.
        added={8: 127.0, 16: 256.0},
        # Codes times it are int32, and wrap around beyond.
        requantized={8: 2.0**22, 16: 2.0**15},
        # Rescaled sums are int32, and int16 kernels wrap around where they are not, as those of
        # int8 do on some processors. With the largest bias, `KernelWrapper` keeps them within four
        # times that.
        sums={8: 2.0**29, 16: 2.0**29},
        # In int32, LOGISTIC and TANH multiply codes by 3 * 4096 times the scale, and SOFTMAX shifts
        # them by the exponent of 6553.5 times the scale: they wrap around at 5.33 and 5.
        curve_scale=5.0,
        # There LiteRT's shift codes, and TFLite Micro's take the power of two for the scale.
        fixed_point={"LOGISTIC": (2.0**-12,), "TANH": (2.0**-12, 2.0**-11)},
    ),
)


def _with_packed(own: AccumulatorKernel) -> dict[tuple[str, int, int], AccumulatorKernel]:
    """The kernels where a processor is named, whose own one rounds packed weights on int8."""
    packed = {("CONV_2D", 8, 4): own, ("FULLY_CONNECTED", 8, 4): sums.with_odd(own)}
    return {**ACCUMULATOR_KERNELS, **packed}


X86_64 = dataclasses.replace(
    LITERT,
    name="litert-x86-64",
    machines=("x86_64", "AMD64"),
    operators=_ON_ONE,
    accumulator_kernels={
        **_with_packed(sums.rescale_twice),
        ("DEPTHWISE_CONV_2D", 8, 4): sums.rescale_by_eights,
    },
)

ARM64 = dataclasses.replace(
    LITERT,
    name="litert-arm64",
    machines=("aarch64", "arm64"),
    # Packed depthwise convolutions round there as on x86-64 in what was tried (docs/parity.md).
    operators={**_ON_ONE, "DEPTHWISE_CONV_2D": _ON_ANY["DEPTHWISE_CONV_2D"]},
    accumulator_kernels=_with_packed(sums.rescale_once),
)
