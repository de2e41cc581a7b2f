"""Files that are well-formed flatbuffers, and damaged all the same."""

import numpy as np
import pytest

import kerasq
from kerasq.litert import flatbuffer
from kerasq.litert.verify import verify
from tests import networks


@pytest.fixture(scope="module")
def content():
    return kerasq.export_tflite(networks.quantized(networks.two_by_two())).content


def tensor(model, name):
    return next(x for x in model.subgraphs[0].tensors if x.name == name)


def operator(model, kind):
    found = model.subgraphs[0].operators
    return next(x for x in found if flatbuffer.op_name(flatbuffer.op_code(model, x)) == kind)


def set_name(model):
    tensor(model, b"total").name = b"\xff"


def set_buffer(model):
    tensor(model, b"left_hidden/kernel").buffer = 99


def set_shape(model):
    tensor(model, b"total").shape = np.array([1, -6], np.int32)


def set_size(model):
    tensor(model, b"left_hidden/kernel").shape = np.array([6, 5], np.int32)


def set_scale(model):
    tensor(model, b"total").quantization.scale = np.array([np.nan], np.float32)


def set_zero_point(model):
    tensor(model, b"both").quantization.zeroPoint = np.array([-(2**31)], np.int64)


def set_zero_point_of_16_bits(model):
    tensor(model, b"score").quantization.zeroPoint = np.array([200], np.int64)


def set_axis(model):
    tensor(model, b"left_hidden/kernel").quantization.quantizedDimension = 7


def drop_grid(model):
    tensor(model, b"left").quantization = None


def drop_scale(model):
    tensor(model, b"left").quantization.scale = np.array([0.0], np.float32)


def drop_input(model):
    operator(model, "SOFTMAX").inputs = np.array([-1], np.int32)


def set_variable(model):
    tensor(model, b"score").isVariable = True


def drop_operators(model):
    model.subgraphs[0].operators = []


def set_code(model):
    codes = model.operatorCodes[operator(model, "ADD").opcodeIndex]
    codes.builtinCode = codes.deprecatedBuiltinCode = -7


def set_input(model):
    operator(model, "ADD").inputs = np.array([0, 999], np.int32)


def set_kind(model):
    operator(model, "ADD").opcodeIndex = 55


def swap_order(model):
    model.subgraphs[0].operators.reverse()


def set_output(model):
    model.subgraphs[0].outputs = np.array([0, -3], np.int32)


def set_signature(model):
    model.signatureDefs[0].inputs[0].tensorIndex += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_name, "tensor [0-9]+, whose name is no text"),
        (set_buffer, "whose buffer is not there"),
        (set_shape, r"of shape \[1, -6\]"),
        (set_size, "a constant of 24 bytes whose shape needs 30"),
        (set_scale, "whose scales are negative or no numbers"),
        (set_zero_point, "whose zero points are no codes"),
        (set_zero_point_of_16_bits, "tensor [0-9]+, whose zero points are no codes"),
        (set_axis, "whose 6 scales do not fit axis 7"),
        (drop_grid, "FULLY_CONNECTED, which computes on 'left', whose grid is not there"),
        (drop_scale, "FULLY_CONNECTED, which computes on 'left', whose grid is not there"),
        (drop_input, "SOFTMAX, which lacks an input"),
        (set_variable, "which writes a variable"),
        (drop_operators, "outputs that no operator writes"),
        (set_code, "of kind -7, which there is not"),
        (set_input, "which reads or writes what is no tensor"),
        (set_kind, "whose kind is not there"),
        (swap_order, "operator 0, which reads what none before it writes"),
        (set_output, "inputs or outputs that are no tensors"),
        (set_signature, "a signature of other inputs or outputs"),
    ],
)
def test_damage(content, damage, message):
    model = flatbuffer.read(content)
    damage(model)
    # Most of it the interpreter refuses by itself, once it is asked; none may end the process.
    with pytest.raises(ValueError, match=rf"must be a whole model. Received: .*{message}"):
        verify(model)
    with pytest.raises(ValueError, match="Received: "):
        kerasq.TFLiteModel(flatbuffer.write(model))


def test_sound_files(content):
    verify(flatbuffer.read(content))
    assert kerasq.TFLiteModel(content).content == content


def test_an_output_of_another_shape(content):
    model = flatbuffer.read(content)
    tensor(model, b"label").shape = np.array([1, 0], np.int32)
    with pytest.raises(ValueError, match=r"shapes that the file says.*Received: .*Export it again"):
        lite = kerasq.TFLiteModel(flatbuffer.write(model))
        lite.predict([np.zeros((1, *x.shape[1:]), "f") for x in lite.inputs])
