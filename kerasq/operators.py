"""One table: the LiteRT operators kerasq exports to, and the widths their kernels know."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """What LiteRT's kernels for an operator can do.

    Attributes:
        int8: least operator version for int8 activations.
        int16: the same for int16 activations; None where there is no such kernel, or none that
            kerasq simulates (EXP, GELU, LEAKY_RELU).
        int4: the same for packed INT4 weights, by the bits of the activations.
        reference: whether the reference kernels have the operator at all.
        copies: whether it only moves or picks values: its output has the grid of its input.
        one_grid: whether all its inputs must have the grid of its output.
        parameter: what its constant second input is called.
    """

    int8: int
    int16: int | None = None
    int4: dict[int, int] = dataclasses.field(default_factory=dict)
    reference: bool = True
    copies: bool = False
    one_grid: bool = False
    parameter: str = ""


# Versions from LiteRT's op_version.cc. FULLY_CONNECTED 12 is the first with per-channel weights: an
# older runtime must refuse the file, not misread it. DEPTHWISE_CONV_2D has INT4 in version 7, which
# the reference kernels of LiteRT 2.3 do not register, though they run it; on int16 it loads packed
# INT4 weights but reads them as int8.
OPERATORS: dict[str, Operator] = {
    "ADD": Operator(int8=2, int16=3),
    "AVERAGE_POOL_2D": Operator(int8=2, int16=3),
    "CONCATENATION": Operator(int8=2, int16=3, one_grid=True),
    "CONV_2D": Operator(int8=3, int16=4, int4={8: 7, 16: 8}),
    "DEPTHWISE_CONV_2D": Operator(int8=3, int16=5, int4={8: 6}),
    "DEQUANTIZE": Operator(int8=2, int16=3),
    "ELU": Operator(int8=1, reference=False),
    "EXP": Operator(int8=2),
    "FULLY_CONNECTED": Operator(int8=12, int16=12, int4={8: 12, 16: 13}),
    "GELU": Operator(int8=2),
    "HARD_SWISH": Operator(int8=1),
    "LEAKY_RELU": Operator(int8=2),
    "LOGISTIC": Operator(int8=2, int16=3),
    "MAXIMUM": Operator(int8=2, int16=4, one_grid=True),
    "MAX_POOL_2D": Operator(int8=2, int16=3, copies=True),
    "MINIMUM": Operator(int8=2, int16=4, one_grid=True),
    "MUL": Operator(int8=2, int16=4),
    "PAD": Operator(int8=2, int16=3, copies=True, parameter="paddings"),
    "QUANTIZE": Operator(int8=2, int16=2),
    "REDUCE_MAX": Operator(int8=2, int16=3, copies=True, parameter="axes"),
    "RELU": Operator(int8=2, int16=3),
    "RESHAPE": Operator(int8=1, int16=1, copies=True, parameter="shape"),
    "SOFTMAX": Operator(int8=2, int16=3),
    "SUB": Operator(int8=2, int16=5),
    "TANH": Operator(int8=2, int16=3),
    "TRANSPOSE": Operator(int8=2, int16=4, copies=True, parameter="axes"),
}


# Those that multiply by weights.
KERNEL_OPS = tuple(name for name, operator in OPERATORS.items() if operator.int4)


def has_int16(name: str) -> bool:
    """Whether LiteRT has an int16 kernel for an operator."""
    return name in OPERATORS and OPERATORS[name].int16 is not None


def packs(name: str, weight_bits: int, activation_bits: int) -> bool:
    """Whether an operator's weights are stored as packed INT4."""
    return weight_bits == 4 and activation_bits in OPERATORS[name].int4


def version(name: str, weight_bits: int, activation_bits: int) -> int:
    """The least operator version for these widths."""
    operator = OPERATORS[name]
    if packs(name, weight_bits, activation_bits):
        return operator.int4[activation_bits]
    found = operator.int8 if activation_bits <= 8 else operator.int16
    if found is None:
        raise ValueError(f"{name} must have a kernel for int{activation_bits}. Received: none.")
    return found
