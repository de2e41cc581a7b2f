"""TFLite Micro's portable kernels, which CMSIS-NN and ESP-NN follow.

Read off its source of August 2026, and checked against its interpreter in
tests/targets/test_tflm.py.
"""

import dataclasses

from kerasq.kernels import AccumulatorKernel, Kernel, any_width, int8, int16, lstm, tflm
from kerasq.kernels import accumulators as sums
from kerasq.litert import micro
from kerasq.litert.operators import OPERATORS as ALL
from kerasq.litert.operators import Operator
from kerasq.scheme import FLOAT_BITS
from kerasq.targets.litert import LITERT
from kerasq.targets.target import Target

# What it has no kernel of, or none that is simulated; of int16; and of packed INT4 weights, beside
# int8 activations.
_MISSING = ("ELU", "EXP", "GELU", "TILE", "TOPK_V2")
_ONLY_INT8 = (
    "ARG_MAX",
    "ARG_MIN",
    "GATHER",
    "MIRROR_PAD",
    "REDUCE_MAX",
    "REDUCE_MIN",
    "RESIZE_BILINEAR",
)
_INT4 = ("CONV_2D", "DEPTHWISE_CONV_2D")


def _operator(name: str, known: Operator) -> Operator:
    """What it has of an operator that LiteRT has."""
    int4 = {8: known.int4[8]} if name in _INT4 else {}
    is_narrow = name in _ONLY_INT8
    return dataclasses.replace(
        known,
        int4=int4,
        int4_groups=True,
        int16=None if is_narrow else known.int16,
        axes=micro.AXES.get(name),
        broadcast_axes=micro.BROADCAST_AXES.get(name),
    )


OPERATORS = {name: _operator(name, known) for name, known in ALL.items() if name not in _MISSING}
OPERATORS["RSQRT"] = dataclasses.replace(
    ALL["RSQRT"], int16=3
)  # That of each code, unlike LiteRT's.
# Which takes no packed weights, and is a convolution of one pixel.
OPERATORS["FULLY_CONNECTED"] = dataclasses.replace(OPERATORS["FULLY_CONNECTED"], int4_by="CONV_2D")
OPERATORS["CONCATENATION"] = dataclasses.replace(OPERATORS["CONCATENATION"], inputs=10)

KERNELS: dict[tuple[str, int], Kernel] = {
    ("ADD", 8): tflm.add,
    ("ADD", 16): tflm.add,
    ("AVERAGE_POOL_2D", 8): any_width.average_pool,
    ("AVERAGE_POOL_2D", 16): any_width.average_pool,
    ("BATCH_MATMUL", 8): tflm.matmul,
    ("BATCH_MATMUL", 16): tflm.matmul_16,
    ("CONCATENATION", 8): any_width.on_one_grid,
    ("CONCATENATION", 16): any_width.on_one_grid,
    ("GATHER", 8): any_width.lookup,
    ("L2_NORMALIZATION", 8): int8.normalize,
    ("LEAKY_RELU", 8): any_width.leaky_relu,
    ("LEAKY_RELU", 16): tflm.leaky_relu,
    ("LOGISTIC", 8): tflm.sigmoid,
    ("LOGISTIC", 16): int16.sigmoid,
    ("LOG_SOFTMAX", 8): tflm.log_softmax,
    ("MAXIMUM", 8): any_width.on_one_grid,
    ("MAXIMUM", 16): any_width.on_one_grid,
    ("MEAN", 8): int16.mean,
    ("MEAN", 16): int16.mean,
    ("MINIMUM", 8): any_width.on_one_grid,
    ("MINIMUM", 16): any_width.on_one_grid,
    ("MUL", 8): tflm.multiply,
    ("MUL", 16): tflm.multiply,
    ("PACK", 8): any_width.on_one_grid,
    ("PACK", 16): any_width.on_one_grid,
    ("QUANTIZE", 8): int16.requantize,
    ("QUANTIZE", 16): int16.requantize,
    ("QUANTIZE", FLOAT_BITS): tflm.quantize,
    ("RELU", 8): tflm.relu,
    ("RELU", 16): tflm.relu,
    ("RESIZE_BILINEAR", 8): tflm.resize_bilinear,
    ("RSQRT", 16): tflm.inverse_root,
    ("SELECT_V2", 8): any_width.on_one_grid,
    ("SELECT_V2", 16): any_width.on_one_grid,
    ("SOFTMAX", 8): tflm.softmax,
    ("SOFTMAX", 16): tflm.softmax_16,
    ("SUB", 8): tflm.subtract,
    ("SUB", 16): tflm.subtract,
    ("SUM", 8): tflm.total,
    ("SUM", 16): tflm.total,
    ("TANH", 8): tflm.tanh,
    ("TANH", 16): int16.tanh,
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", 8): lstm.micro_sequence,
}

ACCUMULATOR_KERNELS: dict[tuple[str, int, int], AccumulatorKernel] = {
    ("CONV_2D", 8, 8): tflm.rescale,
    ("CONV_2D", 8, 4): tflm.rescale,
    ("CONV_2D", 16, 8): sums.rescale_15_bits,
    ("DEPTHWISE_CONV_2D", 8, 8): tflm.rescale,
    ("DEPTHWISE_CONV_2D", 8, 4): tflm.rescale,
    ("DEPTHWISE_CONV_2D", 16, 8): sums.rescale_15_bits,
    ("FULLY_CONNECTED", 8, 8): tflm.rescale,
    ("FULLY_CONNECTED", 8, 4): tflm.rescale,
    ("FULLY_CONNECTED", 16, 8): sums.rescale_15_bits,
    ("TRANSPOSE_CONV", 8, 8): tflm.rescale,
    ("TRANSPOSE_CONV", 16, 8): sums.rescale_15_bits,
}

TFLM = Target(
    name="tflm",
    runtime="tflm",
    away=True,
    fuses_lstm=True,
    negative_places=False,
    operators=OPERATORS,
    kernels=KERNELS,
    accumulator_kernels=ACCUMULATOR_KERNELS,
    limits=dataclasses.replace(
        LITERT.limits,
        added={8: 256.0, 16: 256.0},
        # Roots are int32 before they are clipped.
        root=2.0**30,
        softmax_scale=micro.SOFTMAX_SCALE,
        softmax_values=micro.SOFTMAX_VALUES,
    ),
)
