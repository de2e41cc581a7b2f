"""The table of LiteRT's operators against the interpreter itself, on models of one operator."""

import dataclasses
from importlib import metadata

import numpy as np
import pytest
import tensorflow as tf

from kerasq import registry
from kerasq.litert.operators import KERNEL_OPS, OPERATORS
from kerasq.targets import ARM64, LITERT, X86_64
from tests.single_op import Op, Tensor, build, run
from tests.test_kernels import grid
from tests.test_kernels_int16 import fitting, random_codes, tensor, weighted_case

KERNELS = ["optimized", "reference"]
COMPARISONS = {"EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL"}
# Those with several outputs, or other operands first, or of integers that lie on no grid: models
# that have them are run in test_graphs.py.
IN_MODELS = {"ARG_MAX", "ARG_MIN", "CAST", "SELECT_V2", "SPLIT", "SPLIT_V", "TRANSPOSE_CONV"}
IN_MODELS |= {"TOPK_V2", "UNPACK", *COMPARISONS}
# In a test of its own, tests/test_kernels_lstm.py.
LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
IN_MODELS |= {LSTM}
# What the reference kernels of LiteRT 2.1 do not have yet.
NEW = {"REVERSE_V2"} if metadata.version("ai-edge-litert").startswith("2.1.") else set()
WIDTHS = [
    (name, bits)
    for name in OPERATORS
    for bits in (8, 16)
    if name not in IN_MODELS and (bits == 8 or OPERATORS[name].int16 is not None)
]
INT4 = [(name, bits) for name, operator in OPERATORS.items() for bits in operator.int4]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator on integer inputs: its tensors, its options, and what it must compute."""

    inputs: list[np.ndarray]
    tensors: list[Tensor]  # as for `build`: the last one is the output
    options: dict
    expected: np.ndarray  # real values

    @property
    def constants(self):
        return [t for t in self.tensors[:-1] if t.values is not None]

    def content(self, name, version):
        return build(getattr(Op, name), version, self.tensors, **self.options)


# Operators without weights: options, function on real values, and either nothing (the output has
# the grid of the input), the limit of its range, or the name of its fixed grid.
PLAIN = {
    "ADD": ({"kind": "AddOptions", "potScaleInt16": False}, np.add, 8.0),
    "BATCH_MATMUL": (
        {"kind": "BatchMatMulOptions", "adjY": True},
        lambda x, y: x @ y.swapaxes(-1, -2),
        200.0,
    ),
    "BROADCAST_TO": ({}, lambda x: np.broadcast_to(x, (3, 8, 4, 8)), None),
    "AVERAGE_POOL_2D": (None, lambda x: windows(x).mean((4, 5)), None),
    "CONCATENATION": (
        {"kind": "ConcatenationOptions", "axis": 3},
        lambda *xs: np.concatenate(xs, 3),
        None,
    ),
    "DEPTH_TO_SPACE": (
        {"kind": "DepthToSpaceOptions", "blockSize": 2},
        lambda x: np.asarray(tf.nn.depth_to_space(x, 2)),
        None,
    ),
    "DEQUANTIZE": ({}, lambda x: x, "float32"),
    "ELU": ({}, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), None),
    "EXP": ({}, np.exp, 1100.0),
    "GATHER": ({"kind": "GatherOptions", "axis": 2}, lambda x: x[:, :, [2, 0, 3]], None),
    "GELU": ({"kind": "GeluOptions", "approximate": True}, lambda x: gelu(x), 8.0),
    "L2_NORMALIZATION": ({"kind": "L2NormOptions"}, lambda x: unit(x), "tanh"),
    "RSQRT": ({}, lambda x: 1 / np.sqrt(x), 5.0),
    "LEAKY_RELU": (
        {"kind": "LeakyReluOptions", "alpha": 0.25},
        lambda x: np.where(x > 0, x, 0.25 * x),
        8.0,
    ),
    "LOGISTIC": ({}, lambda x: 1 / (1 + np.exp(-x)), "sigmoid"),
    "LOG_SOFTMAX": (
        {"kind": "LogSoftmaxOptions"},
        lambda x: np.log(softmax(x)),
        "log_softmax",
    ),
    "MAXIMUM": ({"kind": "MaximumMinimumOptions"}, np.maximum, None),
    "MEAN": ({"kind": "ReducerOptions", "keepDims": False}, lambda x: x.mean((1, 2)), 2.0),
    "MINIMUM": ({"kind": "MaximumMinimumOptions"}, np.minimum, None),
    "MIRROR_PAD": (
        {"kind": "MirrorPadOptions", "mode": 0},
        lambda x: np.pad(x, [(0, 0), (1, 2), (0, 1), (0, 0)], "reflect"),
        None,
    ),
    "MUL": ({"kind": "MulOptions"}, np.multiply, 50.0),
    "PACK": (
        {"kind": "PackOptions", "axis": 1, "valuesCount": 2},
        lambda *xs: np.stack(xs, 1),
        None,
    ),
    "SUB": ({"kind": "SubOptions", "potScaleInt16": False}, np.subtract, 14.0),
    "TRANSPOSE": ({"kind": "TransposeOptions"}, lambda x: x.transpose(0, 3, 1, 2), None),
    "MAX_POOL_2D": (None, lambda x: windows(x).max((4, 5)), None),
    "PAD": ({}, lambda x: np.pad(x, [(0, 0), (1, 2), (0, 1), (0, 0)]), None),
    "QUANTIZE": ({"kind": "QuantizeOptions"}, lambda x: x, 6.0),
    "REDUCE_MAX": ({"kind": "ReducerOptions", "keepDims": False}, lambda x: x.max((1, 2)), None),
    "REDUCE_MIN": (
        {"kind": "ReducerOptions", "keepDims": True},
        lambda x: x.min(3)[..., None],
        None,
    ),
    "RELU": ({}, lambda x: np.maximum(x, 0), 8.0),
    "RESIZE_BILINEAR": (
        {"kind": "ResizeBilinearOptions", "halfPixelCenters": True},
        lambda x: np.asarray(tf.image.resize(x, (16, 8))),
        None,
    ),
    "RESIZE_NEAREST_NEIGHBOR": (
        {"kind": "ResizeNearestNeighborOptions"},
        lambda x: x.repeat(2, 1).repeat(2, 2),
        None,
    ),
    "REVERSE_V2": ({}, lambda x: x[:, :, ::-1], None),
    "SLICE": ({"kind": "SliceOptions"}, lambda x: x[:, 1:5, :2], None),
    "SPACE_TO_DEPTH": (
        {"kind": "SpaceToDepthOptions", "blockSize": 2},
        lambda x: np.asarray(tf.nn.space_to_depth(x, 2)),
        None,
    ),
    "SUM": ({"kind": "ReducerOptions", "keepDims": False}, lambda x: x.sum((1, 2)), 60.0),
    "STRIDED_SLICE": ({"kind": "StridedSliceOptions"}, lambda x: x[:, 1:7:2, :, 4:], None),
    "TILE": ({}, lambda x: np.tile(x, (1, 2, 1, 3)), None),
    "RESHAPE": (
        {"kind": "ReshapeOptions", "newShape": np.array([1, 32, 8])},
        lambda x: x.reshape(1, 32, 8),
        None,
    ),
    "SOFTMAX": ({"kind": "SoftmaxOptions", "beta": 1.0}, lambda x: softmax(x), "softmax"),
    "TANH": ({}, np.tanh, "tanh"),
}
POOL = {
    "kind": "Pool2DOptions",
    "padding": 1,
    **dict.fromkeys(["strideH", "strideW", "filterHeight", "filterWidth"], 2),
}
PARAMETERS = {
    "BROADCAST_TO": [[3, 8, 4, 8]],
    "GATHER": [[2, 0, 3]],
    "MEAN": [[1, 2]],
    "MIRROR_PAD": [[[0, 0], [1, 2], [0, 1], [0, 0]]],
    "PAD": [[[0, 0], [1, 2], [0, 1], [0, 0]]],
    "REDUCE_MAX": [[1, 2]],
    "REDUCE_MIN": [[3]],
    "SUM": [[1, 2]],
    "RESHAPE": [[1, 32, 8]],
    "RESIZE_BILINEAR": [[16, 8]],
    "RESIZE_NEAREST_NEIGHBOR": [[16, 8]],
    "REVERSE_V2": [[2]],
    "SLICE": [[0, 1, 0, 0], [1, 4, 2, 8]],
    "STRIDED_SLICE": [[0, 1, 0, 4], [1, 7, 4, 8], [1, 2, 1, 1]],
    "TILE": [[1, 2, 1, 3]],
    "TRANSPOSE": [[0, 3, 1, 2]],
}
NOT_SIMULATED = {"EXP", "GELU"}  # They have int16 kernels.
OF_TWO = ("ADD", "BATCH_MATMUL", "CONCATENATION", "MAXIMUM", "MINIMUM", "MUL", "PACK", "SUB")
WEIGHTS = {
    "CONV_2D": ((24, 3, 3, 16), 0, "hwcij,oijc->hwo"),
    "DEPTHWISE_CONV_2D": ((1, 3, 3, 16), 3, "hwcij,nijc->hwc"),
    "FULLY_CONNECTED": ((20, 16), 0, "nc,oc->no"),
}
STRIDES = {"padding": 1, "strideW": 1, "strideH": 1}
WEIGHT_OPTIONS = {
    "CONV_2D": {"kind": "Conv2DOptions", **STRIDES},
    "DEPTHWISE_CONV_2D": {"kind": "DepthwiseConv2DOptions", "depthMultiplier": 1, **STRIDES},
    "FULLY_CONNECTED": {"kind": "FullyConnectedOptions"},
}


def windows(x, size=2, stride=2):
    found = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return found[:, ::stride, ::stride]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def over(limit, bits):
    """A grid from -limit to limit."""
    return grid(limit / 2.0 ** (bits - 1), 3 if bits == 8 else 0, bits=bits)


def plain_case(name, bits, seed=0):
    """An operator without weights on codes of `bits`."""
    options, function, end = PLAIN[name]
    rng = np.random.default_rng(seed)
    source = over(7.0, bits)
    count = 2 if name in OF_TWO else 1
    codes = [random_codes(rng, (1, 8, 4, 8), bits) for _ in range(count)]
    if name == "RSQRT":  # Of what is not positive there is none.
        codes = [np.maximum(codes[0], 4)]
    expected = function(*(source.dequantize(x).astype(np.float64) for x in codes))
    constants = []
    if name in PARAMETERS:
        parameters = [np.array(values, np.int32) for values in PARAMETERS[name]]
        constants = [Tensor(x.shape, dtype="int32", values=x) for x in parameters]
    if end == "float32":
        target = Tensor(expected.shape, dtype="float32")
    elif isinstance(end, str):
        grids = registry.ACTIVATIONS[end].grids
        target = tensor(expected.shape, grids.get(bits, grids[8]))
    else:
        target = tensor(expected.shape, source if end is None else over(end, bits))
    tensors = [*(tensor(x.shape, source) for x in codes), *constants, target]
    return Case(codes, tensors, POOL if options is None else options, expected)


def weighted(name, bits, weight_bits, stored="int8", seed=0):
    """An operator with weights of `weight_bits`, `stored` as int8 or as packed int4."""
    shape, axis, sums = WEIGHTS[name]
    spatial = len(shape) == 4
    x = random_codes(np.random.default_rng(seed), (1, 12, 12, 16) if spatial else (64, 16), bits)
    operands, source, weights, w, bias = weighted_case(
        name, shape, axis, x, bits, weight_bits, seed
    )
    centred = x.astype(np.int64) - source.zero_point
    total = np.einsum(sums, windows(centred, 3, 1)[0] if spatial else centred, w) + bias
    total = total[None] if spatial else total
    out = fitting(total, source, weights, bits, seed)
    operands[1] = dataclasses.replace(operands[1], dtype=stored)
    real = total * (np.float64(source.scale) * weights.scale)
    return Case([x], [*operands, tensor(total.shape, out)], WEIGHT_OPTIONS[name], real)


def case(name, bits):
    return weighted(name, bits, 8) if name in KERNEL_OPS else plain_case(name, bits)


def test_every_operator_has_a_case():
    assert {*PLAIN, *WEIGHTS, *IN_MODELS} == {*OPERATORS}
    assert {*WEIGHTS, "TRANSPOSE_CONV"} == {*KERNEL_OPS}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_the_interpreter_runs_it(name, bits, kernels):
    one = case(name, bits)
    content = one.content(name, LITERT.version(name, 8, bits))
    if kernels == "reference" and name == "SUM":
        pytest.skip("it has a test of its own")
    if kernels == "reference" and (name in NEW or not OPERATORS[name].reference):
        with pytest.raises(ValueError, match=f"Didn't find op for builtin opcode '{name}'"):
            run(content, *one.inputs, kernels=kernels)
        return
    found = run(content, *one.inputs, kernels=kernels)
    target = one.tensors[-1].grid
    assert found.dtype == (np.float32 if target is None else f"int{bits}")
    if target is None:
        np.testing.assert_allclose(found, one.expected, rtol=1e-6, atol=1e-6)
        return
    difference = np.abs(found.astype(int) - target.quantize(one.expected))
    # Tables and multipliers of the int16 kernels are good for about 13 bits.
    assert difference.max() <= (1 if bits == 8 else 8)
    assert len(np.unique(target.quantize(one.expected))) >= 5


@pytest.mark.parametrize("bits", [8, 16])
def test_the_reference_kernels_sum_other_integers(bits):
    """Why the table says that they do not have it: SUM reads any codes as unsigned 8-bit ones.

    Of 16-bit outputs it writes one half, so the other holds what the memory held before.
    """
    one = case("SUM", bits)
    found = run(one.content("SUM", 2), *one.inputs, kernels="reference")
    difference = np.abs(found.astype(int) - one.tensors[-1].grid.quantize(one.expected))
    assert difference.max() > 4


@pytest.mark.parametrize("version", range(1, 6))
@pytest.mark.parametrize(
    "name", ["DEPTH_TO_SPACE", "ELU", "L2_NORMALIZATION", "LOG_SOFTMAX", "SPACE_TO_DEPTH"]
)
def test_the_interpreter_refuses_int16_where_the_table_has_none(name, version):
    one = case(name, 16)
    with pytest.raises((RuntimeError, ValueError), match=name):
        run(one.content(name, version), *one.inputs)


@pytest.mark.parametrize(
    ("name", "bits"), [(n, bits) for n, bits in WIDTHS if OPERATORS[n].pass_through]
)
def test_copies(name, bits):
    one = case(name, bits)
    found = run(one.content(name, LITERT.version(name, 8, bits)), *one.inputs)
    assert one.tensors[0].grid == one.tensors[-1].grid
    assert {*found.ravel()} <= {*one.inputs[0].ravel(), one.tensors[0].grid.zero_point}


@pytest.mark.parametrize("name", list(PLAIN))
def test_a_parameter_is_the_constant_second_input(name):
    assert bool(OPERATORS[name].parameter) == (len(case(name, 8).constants) >= 1)


# Packed INT4 weights.


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "bits"), INT4)
def test_packed_int4_weights(name, bits, seed, kernels):
    packed, plain = (weighted(name, bits, 4, stored, seed) for stored in ("int4", "int8"))
    assert X86_64.packs(name, 4, bits)
    version = X86_64.version(name, 4, bits)
    found = run(packed.content(name, version), *packed.inputs, kernels=kernels)
    version = LITERT.version(name, 8, bits)
    want = run(plain.content(name, version), *plain.inputs, kernels=kernels)
    assert np.abs(found.astype(int) - want).max() <= 1
    assert len(np.unique(want)) > 30


def test_what_can_be_packed():
    assert sorted(INT4) == [
        ("CONV_2D", 8),
        ("CONV_2D", 16),
        ("DEPTHWISE_CONV_2D", 8),
        ("FULLY_CONNECTED", 8),
        ("FULLY_CONNECTED", 16),
    ]
    assert {*KERNEL_OPS} == {*WEIGHTS, "TRANSPOSE_CONV"}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("version", [5, 6])
def test_depthwise_misreads_packed_int4_weights_under_int16(version, kernels):
    """Why the table leaves it out: the interpreter takes the model, and computes nonsense."""
    packed, plain = (weighted("DEPTHWISE_CONV_2D", 16, 4, stored) for stored in ("int4", "int8"))
    found = run(packed.content("DEPTHWISE_CONV_2D", version), *packed.inputs, kernels=kernels)
    want = run(plain.content("DEPTHWISE_CONV_2D", 5), *plain.inputs, kernels=kernels)
    assert np.abs(want - plain.tensors[-1].grid.quantize(plain.expected).astype(int)).max() <= 3
    difference = np.abs(found.astype(int) - want).mean((0, 1, 2))
    assert (difference > 3 * want.std((0, 1, 2))).all()  # in every channel
    assert 16 not in OPERATORS["DEPTHWISE_CONV_2D"].int4


def test_the_reference_kernels_refuse_version_7_of_depthwise():
    """Why packed INT4 weights are written as version 6, which computes the same."""
    packed = weighted("DEPTHWISE_CONV_2D", 8, 4, "int4")
    found = [
        run(packed.content("DEPTHWISE_CONV_2D", version), *packed.inputs) for version in (6, 7)
    ]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match="DEPTHWISE_CONV_2D"):
        run(packed.content("DEPTHWISE_CONV_2D", 7), *packed.inputs, kernels="reference")


# Functions on the table.


def test_has():
    # What gives no codes needs no simulation of them.
    others = {"CAST", "DEQUANTIZE"} | {name for name, x in OPERATORS.items() if x.compares}
    computed = {name for name, x in OPERATORS.items() if not x.pass_through} - others
    missing = {name for name in computed if not LITERT.has(name, 16)}
    assert missing == {"ELU", "L2_NORMALIZATION", "LOG_SOFTMAX", "RSQRT", LSTM, *NOT_SIMULATED}
    assert not LITERT.has("-", 16) and not LITERT.has("CONV_3D", 16)


@pytest.mark.parametrize(
    ("name", "weight_bits", "bits", "packed", "version"),
    [
        ("CONV_2D", 8, 8, False, 3),
        ("CONV_2D", 8, 16, False, 4),
        ("CONV_2D", 4, 8, False, 3),
        ("CONV_2D", 4, 16, True, 8),
        ("DEPTHWISE_CONV_2D", 8, 8, False, 3),
        ("DEPTHWISE_CONV_2D", 4, 8, False, 3),
        ("DEPTHWISE_CONV_2D", 4, 16, False, 5),
        ("FULLY_CONNECTED", 8, 8, False, 4),
        ("FULLY_CONNECTED", 8, 16, False, 12),
        ("FULLY_CONNECTED", 4, 8, True, 10),
        ("FULLY_CONNECTED", 4, 16, True, 13),
        ("ADD", 4, 8, False, 2),
        ("ADD", 4, 16, False, 3),
        ("ELU", 8, 8, False, 1),
    ],
)
def test_packs_and_version(name, weight_bits, bits, packed, version):
    assert LITERT.packs(name, weight_bits, bits) is packed
    assert LITERT.version(name, weight_bits, bits) == version


def test_packed_weights_that_processors_round_otherwise():
    for target in (X86_64, ARM64):
        assert target.packs("CONV_2D", 4, 8) and target.version("CONV_2D", 4, 8) == 7
        assert target.packs("FULLY_CONNECTED", 4, 8, inputs=5)
    assert LITERT.packs("FULLY_CONNECTED", 4, 8, inputs=6)
    assert not LITERT.packs("FULLY_CONNECTED", 4, 8, inputs=5)
    assert LITERT.packs("FULLY_CONNECTED", 4, 16, inputs=5)


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_version_of_a_kernel_that_there_is_not(weight_bits):
    text = "ELU must have a kernel for int16. Received: target 'litert', which has none"
    with pytest.raises(ValueError, match=text):
        LITERT.version("ELU", weight_bits, 16)


def test_an_operator_that_is_not_in_the_table():
    with pytest.raises(KeyError, match="CONV_3D"):
        LITERT.packs("CONV_3D", 4, 8)
    with pytest.raises(ValueError, match="CONV_3D must have a kernel for int8"):
        LITERT.version("CONV_3D", 4, 8)
