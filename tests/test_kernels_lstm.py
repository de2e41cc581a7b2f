"""UNIDIRECTIONAL_SEQUENCE_LSTM on int8 against both interpreters, to the last code."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from kerasq.grid import Grid
from kerasq.kernels import gemmlowp, lstm
from kerasq.litert import flatbuffer
from kerasq.litert.micro import MicroInterpreter
from tests.single_op import run
from tests.test_kernels import tensors

LSTM = schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM


def grid(scale, zero_point=0, bits=8):
    return Grid(scale=np.float32(scale), zero_point=np.int32(zero_point), bits=bits)


def build(shape, plain, weights, out, cell_bits):
    """The flatbuffer of one operator, gates in LiteRT's order: i, f, c, o, as in Keras."""
    model = schema.ModelT()
    model.version, model.buffers, model.metadata = 3, [schema.BufferT()], []
    model.operatorCodes, model.signatureDefs = [], []
    graph = schema.SubGraphT()
    graph.tensors, model.subgraphs = [], [graph]
    units = weights.recurrent.shape[0]

    def add(shape, dtype, plain, values=None):
        return flatbuffer.new_tensor(model, "t", shape, dtype, plain, values)

    def kernels(codes, scales):
        parts = np.split(codes.T, 4)
        return [add(x.shape, np.int8, grid(s), x) for x, s in zip(parts, scales, strict=True)]

    x = add(shape, np.int8, plain)
    own = kernels(weights.kernel, weights.kernel_scale)
    recurrent = kernels(weights.recurrent, weights.recurrent_scale)
    biases = [
        add((units,), np.int32, grid(plain.scale * s), b)
        for b, s in zip(np.split(weights.bias, 4), weights.kernel_scale, strict=True)
    ]
    cell = grid(2.0 ** (cell_bits - 15), bits=16)
    states = add((shape[0], units), np.int8, out), add((shape[0], units), np.int16, cell)
    for state in states:
        graph.tensors[state].isVariable = True
    y = add((*shape[:2], units), np.int8, out)
    inputs = [x, *own, *recurrent, -1, -1, -1, *biases, -1, -1, *states, -1, -1, -1, -1]
    options = {"fusedActivationFunction": schema.ActivationFunctionType.TANH}
    op = flatbuffer.new_op(
        model, LSTM, inputs, [y], 3, ("UnidirectionalSequenceLSTMOptions", options)
    )
    # Of the fifth alone anything is read.
    unread = [add((0,), np.int16, cell) for _ in range(4)]
    op.intermediates = np.array([*unread, add((0,), np.int8, out)], np.int32)
    graph.operators, graph.inputs, graph.outputs = [op], [x], [y]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def micro(content, x):
    """What TFLite Micro computes of it."""
    interpreter = MicroInterpreter(content)
    interpreter.set_tensor(0, x)
    interpreter.invoke()
    return interpreter.get_tensor(0)


def random_case(rng):
    """Shape of the input, grids and weights: from sums that hardly move to saturated ones."""
    samples, steps, features, units = (int(rng.integers(1, n)) for n in (4, 12, 40, 40))
    plain = grid(2.0 ** rng.uniform(-9, -3), rng.integers(-128, 128))
    out = grid(2.0 ** rng.uniform(-10, -6), rng.integers(-128, 128))

    def codes(*shape):
        return rng.integers(-127, 128, shape).astype(np.int8)

    weights = lstm.LstmWeights(
        kernel=codes(features, 4 * units),
        kernel_scale=np.float32(2.0 ** rng.uniform(-13, -5, 4)),
        recurrent=codes(units, 4 * units),
        recurrent_scale=np.float32(2.0 ** rng.uniform(-13, -2, 4)),
        bias=rng.integers(-30_000, 30_000, 4 * units).astype(np.int32),
    )
    return (samples, steps, features), plain, weights, out, int(rng.integers(0, 7))


@pytest.mark.parametrize("runtime", ["litert", "tflm"])
@pytest.mark.parametrize("seed", range(16))
def test_all_codes_are_those_of_the_interpreter(seed, runtime):
    rng = np.random.default_rng(seed)
    shape, plain, weights, out, bits = random_case(rng)
    x = rng.integers(-128, 128, shape).astype(np.int8)
    content = build(shape, plain, weights, out, bits)
    if runtime == "tflm":
        pytest.importorskip("tflite_micro")
        want, rules = micro(content, x), lstm.MICRO
    else:
        want, rules = run(content, x), lstm.LITERT
    centred = x.astype(np.float32) - plain.zero_point
    found = lstm.run(centred, tensors(plain), weights, tensors(out), bits, rules)
    np.testing.assert_array_equal(found + out.zero_point, want)
    assert len(np.unique(want)) > 2


def test_functions_on_16_bits_are_within_12_steps_of_the_real_ones():
    codes = np.arange(-(2**15), 2**15)
    found = gemmlowp.logistic(tf.constant(codes), 3, width=16) / 2**15
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-codes / 2**12)), rtol=0, atol=12 / 2**15)
    for bits in range(lstm.CELL_BITS + 1):
        found = gemmlowp.tanh(tf.constant(codes), bits, width=16) / 2**15
        want = np.tanh(codes / 2.0 ** (15 - bits))
        np.testing.assert_allclose(found, want, rtol=0, atol=13 / 2**15)
