"""One table: the LiteRT operators kerasq exports to, and the widths their kernels know."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """What LiteRT's kernels for an operator can do.

    Attributes:
        int8: least operator version for int8 activations.
        int16: the same for int16 activations; None where there is no such kernel, or none that
            kerasq simulates (EXP and GELU, whose tables hang on the device's C library).
        int4: the same for packed INT4 weights, by the bits of the activations.
        int4_odd: whether packed weights beside int8 codes may have an odd number of inputs.
        int4_groups: whether they may be of a convolution in groups, which LiteRT rounds otherwise.
        int4_by: the operator that computes the same of packed weights, where this one takes none.
        by_others: whether it is written by operators that run where, or faster than, it does
            (`kerasq.export.substitutes.FORMS`).
        channels: the axis of the output channels in its weights; None where it has none.
        data: which of its inputs holds the values.
        reference: whether the reference kernels have the operator at all.
        pass_through: whether it only moves or picks values: its output has the grid of its input.
        one_grid: whether all its inputs must have the grid of its output.
        one_scale: whether both its int16 inputs must have one scale, since processors round others
            onto a common one differently.
        inputs: the most tensors that one takes; None for any number.
        axes: the most that what it reads may have; None for as many as there are.
        broadcast_axes: the same where it reads two tensors of different shapes.
        compares: whether its output is no code, but hangs on which of the input's codes are larger,
            among themselves or than a constant.
        fuses_relu: whether a ReLU behind it becomes part of it. Any operator that computes on all
            int8 codes clamps at their ends, which does the same.
        parameter: what its constant second input is called.
    """

    int8: int
    int16: int | None = None
    int4: dict[int, int] = dataclasses.field(default_factory=dict)
    int4_odd: bool = True
    int4_groups: bool = False
    int4_by: str = ""
    by_others: bool = False
    channels: int | None = None
    data: int = 0
    reference: bool = True
    pass_through: bool = False
    one_grid: bool = False
    one_scale: bool = False
    inputs: int | None = None
    axes: int | None = None
    broadcast_axes: int | None = None
    compares: bool = False
    fuses_relu: bool = False
    parameter: str = ""

    @property
    def bias(self) -> int:
        """Which input is the bias, of one with weights, which are input 1: the last one."""
        return max(2, self.data + 1)


# Of int32, which codes become before.
_COMPARISON = Operator(int8=1, int16=1, compares=True, parameter="threshold")

# Versions from LiteRT's op_version.cc, but that of FULLY_CONNECTED on int8: where weights are per
# channel, it asks for 12, which reference kernels before LiteRT 2.1 refuse, and runtimes from
# TensorFlow 2.12 on read them in any version. On int16 those up to 2.18 leave outputs of three axes
# unwritten, which 12 keeps from those up to 2.16.
# DEPTHWISE_CONV_2D has INT4 in version 7, which the reference kernels of LiteRT 2.3 do not
# register, though they run it; on int16 it loads packed INT4 weights but reads them as int8.
OPERATORS: dict[str, Operator] = {
    "ADD": Operator(int8=2, int16=3, fuses_relu=True),
    # Of int16 there is no kernel: codes become int32 before.
    "ARG_MAX": Operator(int8=2, int16=2, compares=True, parameter="axis"),
    "ARG_MIN": Operator(int8=2, int16=2, compares=True, parameter="axis"),
    "AVERAGE_POOL_2D": Operator(int8=2, int16=3),
    "BATCH_MATMUL": Operator(int8=2, int16=3),
    "BROADCAST_TO": Operator(int8=3, int16=3, pass_through=True, parameter="shape"),
    "CAST": Operator(int8=3, int16=3),
    "CONCATENATION": Operator(int8=2, int16=3, one_grid=True),
    "CONV_2D": Operator(int8=3, int16=4, channels=0, int4={8: 7, 16: 8}, fuses_relu=True),
    "DEPTHWISE_CONV_2D": Operator(int8=3, int16=5, channels=3, int4={8: 6}, fuses_relu=True),
    # Version 2 is the one for int8, but the reference kernels only register the first one.
    "DEPTH_TO_SPACE": Operator(int8=1, pass_through=True),
    "DEQUANTIZE": Operator(int8=2, int16=3),
    "ELU": Operator(int8=1, reference=False),
    "EQUAL": _COMPARISON,
    "EXP": Operator(int8=2),
    "FULLY_CONNECTED": Operator(
        int8=4, int16=12, channels=0, int4={8: 10, 16: 13}, fuses_relu=True
    ),
    "GATHER": Operator(int8=2, int16=4, pass_through=True, parameter="indices"),
    "GELU": Operator(int8=2),
    "GREATER": _COMPARISON,
    "GREATER_EQUAL": _COMPARISON,
    "L2_NORMALIZATION": Operator(int8=2),
    "LEAKY_RELU": Operator(int8=2, int16=2),
    "LESS": _COMPARISON,
    "LESS_EQUAL": _COMPARISON,
    "LOGISTIC": Operator(int8=2, int16=3),
    "LOG_SOFTMAX": Operator(int8=2),
    "MAXIMUM": Operator(int8=2, int16=4, one_grid=True),
    "MAX_POOL_2D": Operator(int8=2, int16=3, pass_through=True),
    "MEAN": Operator(int8=2, int16=3, parameter="axes"),
    "MINIMUM": Operator(int8=2, int16=4, one_grid=True),
    "MIRROR_PAD": Operator(int8=2, int16=3, pass_through=True, parameter="paddings"),
    "MUL": Operator(int8=2, int16=4, fuses_relu=True),
    "NOT_EQUAL": _COMPARISON,
    "PACK": Operator(int8=2, int16=3, one_grid=True),
    "PAD": Operator(int8=2, int16=3, pass_through=True, parameter="paddings"),
    "QUANTIZE": Operator(int8=2, int16=2),
    "REDUCE_MAX": Operator(int8=2, int16=3, pass_through=True, parameter="axes"),
    "REDUCE_MIN": Operator(int8=2, int16=3, pass_through=True, parameter="axes"),
    "RELU": Operator(int8=2, int16=3),
    "RESHAPE": Operator(int8=1, int16=1, pass_through=True, parameter="shape"),
    "REVERSE_V2": Operator(int8=3, int16=3, pass_through=True, parameter="axes"),
    "RESIZE_BILINEAR": Operator(int8=2, int16=4, parameter="size"),
    "RESIZE_NEAREST_NEIGHBOR": Operator(int8=2, int16=4, pass_through=True, parameter="size"),
    "SLICE": Operator(int8=2, int16=4, pass_through=True, parameter="begin"),
    "SOFTMAX": Operator(int8=2, int16=3),
    "SPACE_TO_DEPTH": Operator(int8=2, pass_through=True),
    # On int16 it interpolates between the inverse roots of code 0, which has none, and 128.
    "RSQRT": Operator(int8=2),
    "SELECT_V2": Operator(int8=1, int16=1, data=1, one_grid=True),
    "SUB": Operator(int8=2, int16=5, fuses_relu=True),
    "SPLIT": Operator(int8=2, int16=4, pass_through=True, data=1, parameter="axis"),
    "SPLIT_V": Operator(int8=2, int16=2, pass_through=True, parameter="sizes"),
    "STRIDED_SLICE": Operator(int8=2, int16=4, pass_through=True, parameter="begin"),
    # The reference kernels have it, but read all codes as unsigned ones of 8 bits.
    "SUM": Operator(int8=2, int16=2, reference=False, parameter="axes"),
    "TANH": Operator(int8=2, int16=3),
    "TILE": Operator(int8=2, int16=2, pass_through=True, parameter="multiples"),
    # Its places are no codes: see `export.operators`.
    "TOPK_V2": Operator(int8=2, int16=3, pass_through=True, parameter="k"),
    "TRANSPOSE": Operator(int8=2, int16=4, pass_through=True, parameter="axes"),
    "TRANSPOSE_CONV": Operator(int8=3, int16=3, channels=0, data=2, parameter="output_shape"),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Operator(int8=3),
    "UNPACK": Operator(int8=2, int16=4, pass_through=True),
}


# Those that multiply by weights.
KERNEL_OPS = tuple(name for name, op in OPERATORS.items() if op.channels is not None)


def multiplies(name: str) -> bool:
    """Whether an operator multiplies what it reads, by weights or another tensor, and sums up."""
    return name in KERNEL_OPS or name == "BATCH_MATMUL"


def fuses_relu(name: str) -> bool:
    """Whether a ReLU behind an operator becomes part of it."""
    return name in OPERATORS and OPERATORS[name].fuses_relu
