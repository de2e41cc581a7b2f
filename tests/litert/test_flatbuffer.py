import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from kerasq.grid import Grid
from kerasq.litert import flatbuffer
from kerasq.litert.flatbuffer import Op, Type


def empty():
    """A model without tensors."""
    model = schema.ModelT()
    model.version, model.description = 3, b""
    model.buffers, model.operatorCodes = [schema.BufferT()], []
    model.metadata, model.signatureDefs = [schema.MetadataT()], []
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    graph.inputs = graph.outputs = np.zeros(0, np.int32)
    model.subgraphs = [graph]
    return model


def reshape():
    """`reshape(x, (2, 2))` on int8, by hand, with a constant shape."""
    model, grid = empty(), Grid(scale=np.float32(0.5), zero_point=np.int32(3))
    x = flatbuffer.new_tensor(model, "x", (4,), np.int8, grid)
    shape = flatbuffer.new_tensor(model, "shape", (2,), np.int32, values=np.array([2, 2]))
    y = flatbuffer.new_tensor(model, "y", (2, 2), np.int8, grid)
    graph = model.subgraphs[0]
    graph.operators.append(flatbuffer.new_op(model, Op.RESHAPE, [x, shape], [y]))
    graph.inputs, graph.outputs = np.array([x], np.int32), np.array([y], np.int32)
    return model


def test_a_model_made_by_hand_runs():
    interpreter = Interpreter(model_content=flatbuffer.write(reshape()))
    interpreter.allocate_tensors()
    (given,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert got["quantization"] == (0.5, 3)
    interpreter.set_tensor(given["index"], np.array([1, -2, 3, -4], np.int8))
    interpreter.invoke()
    assert interpreter.get_tensor(got["index"]).tolist() == [[1, -2], [3, -4]]


def test_write_then_read():
    content = flatbuffer.write(reshape())
    assert isinstance(content, bytes) and content[4:8] == b"TFL3"
    model = flatbuffer.read(content)
    assert flatbuffer.write(model) == content
    assert [t.name for t in model.subgraphs[0].tensors] == [b"x", b"shape", b"y"]


def test_constants_are_aligned_to_16_bytes():
    model = empty()
    constants = [np.arange(n, dtype=np.int8) for n in (1, 3, 17, 64)]
    for i, values in enumerate(constants):
        flatbuffer.new_tensor(model, f"c{i}", values.shape, np.int8, values=values)
    content = flatbuffer.write(model)
    packed = schema.Model.GetRootAs(content)
    places = [packed.Buffers(i) for i in range(1, 5)]
    starts = [x._tab.Vector(x._tab.Offset(4)) for x in places]
    assert [start % 16 for start in starts] == [0, 0, 0, 0]
    for start, values in zip(starts, constants, strict=True):
        assert content[start : start + len(values)] == values.tobytes()


def test_zero_points_of_all_channels_are_written_once():
    grid = Grid(scale=np.full(1000, 0.5, np.float32), zero_point=np.zeros(1000, np.int32), axis=0)
    sizes = []
    for count in (1, 2, 3):
        model = empty()
        for i in range(count):
            flatbuffer.new_tensor(model, f"t{i}", (1000,), np.int8, grid)
        content = flatbuffer.write(model)
        sizes.append(len(content))
        for tensor in flatbuffer.read(content).subgraphs[0].tensors:
            np.testing.assert_array_equal(tensor.quantization.zeroPoint, np.zeros(1000))
            np.testing.assert_array_equal(tensor.quantization.scale, grid.scale)
    # Scale and zero point take 12 bytes a channel; those of another tensor 4, and some for tables.
    assert sizes[0] > 12_000
    np.testing.assert_allclose(np.diff(sizes), 4100, atol=90)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int16, np.int32, np.int64])
def test_constants(dtype):
    model = empty()
    values = np.arange(6).reshape(2, 3)
    index = flatbuffer.new_tensor(model, "c", values.shape, dtype, values=values)
    found = flatbuffer.constant(model, model.subgraphs[0].tensors[index])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


def test_a_computed_tensor_has_no_constant():
    model = empty()
    index = flatbuffer.new_tensor(model, "c", (2,), np.int8)
    assert flatbuffer.constant(model, model.subgraphs[0].tensors[index]) is None


def test_constants_of_a_transposed_array_keep_their_order():
    model, values = empty(), np.arange(6, dtype=np.int8).reshape(2, 3).T
    index = flatbuffer.new_tensor(model, "c", values.shape, np.int8, values=values)
    found = flatbuffer.constant(model, model.subgraphs[0].tensors[index])
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("dtype", "bits", "offset"),
    [(np.int8, 8, 0), (np.uint8, 8, 128), (np.int16, 16, 0)],
)
def test_grids_come_back_in_signed_codes(dtype, bits, offset):
    model = empty()
    grid = Grid(scale=np.float32(0.25), zero_point=np.int32(7 if bits == 8 else 0), bits=bits)
    index = flatbuffer.new_tensor(model, "t", (2,), dtype, grid)
    tensor = model.subgraphs[0].tensors[index]
    tensor.quantization.zeroPoint = tensor.quantization.zeroPoint + offset
    found = flatbuffer.grid_of(tensor)
    assert (found.scale, found.zero_point, found.bits) == (0.25, grid.zero_point, bits)
    assert found.axis is None


def test_uint16_has_the_offset_of_its_width():
    model = empty()
    grid = Grid(scale=np.float32(0.25), zero_point=np.int32(0), bits=16)
    index = flatbuffer.new_tensor(model, "t", (2,), np.int16, grid)
    tensor = model.subgraphs[0].tensors[index]
    tensor.type, tensor.quantization.zeroPoint = Type.UINT16, np.array([2**15])
    assert flatbuffer.grid_of(tensor).zero_point == 0


def test_grids_along_an_axis():
    model, scale = empty(), np.array([0.5, 0.25, 1.0], np.float32)
    grid = Grid(scale=scale, zero_point=np.zeros(3, np.int32), axis=3)
    index = flatbuffer.new_tensor(model, "t", (1, 1, 2, 3), np.int8, grid)
    found = flatbuffer.grid_of(model.subgraphs[0].tensors[index])
    np.testing.assert_array_equal(found.scale, scale)
    assert found.axis == 3 and (found.zero_point == 0).all()


def test_no_grid():
    model = empty()
    index = flatbuffer.new_tensor(model, "t", (2,), np.float32)
    assert flatbuffer.grid_of(model.subgraphs[0].tensors[index]) is None


def test_code_index_reuses_an_entry_of_the_same_version():
    model = empty()
    first = flatbuffer.code_index(model, Op.ADD, 2)
    assert flatbuffer.code_index(model, Op.ADD, 2) == first
    assert flatbuffer.code_index(model, Op.ADD, 1) != first
    assert flatbuffer.code_index(model, Op.PAD, 2) != first
    assert [(c.builtinCode, c.version) for c in model.operatorCodes] == [
        (Op.ADD, 2),
        (Op.ADD, 1),
        (Op.PAD, 2),
    ]


def test_codes_above_127_keep_the_old_field_at_the_placeholder():
    model = empty()
    flatbuffer.code_index(model, Op.GELU, 1)
    assert model.operatorCodes[0].deprecatedBuiltinCode == 127
    assert model.operatorCodes[0].builtinCode == Op.GELU == 150


def test_op_name():
    assert flatbuffer.op_name(Op.CONV_2D) == "CONV_2D"
    assert flatbuffer.op_name(3) == "CONV_2D"
    model = reshape()
    op = model.subgraphs[0].operators[0]
    assert flatbuffer.op_name(flatbuffer.op_code(model, op)) == "RESHAPE"


def test_prune_drops_what_nothing_uses_and_nothing_else():
    model = reshape()
    before = flatbuffer.write(model)
    graph = model.subgraphs[0]
    flatbuffer.new_tensor(model, "unused", (9,), np.int8, values=np.ones(9))
    graph.tensors.insert(0, graph.tensors.pop())  # Indices behind it all move by one.
    graph.inputs, graph.outputs = graph.inputs + 1, graph.outputs + 1
    for op in graph.operators:
        op.inputs, op.outputs = op.inputs + 1, op.outputs + 1
    model.operatorCodes.insert(0, schema.OperatorCodeT())
    graph.operators[0].opcodeIndex = 1
    flatbuffer.prune(model)
    assert [t.name for t in graph.tensors] == [b"x", b"shape", b"y"]
    assert len(model.buffers) == 2 and len(model.operatorCodes) == 1
    assert model.metadata == []
    pruned = flatbuffer.read(before)
    pruned.metadata = []
    assert flatbuffer.write(model) == flatbuffer.write(pruned)


def test_prune_keeps_optional_inputs_that_are_left_out():
    model = reshape()
    graph = model.subgraphs[0]
    graph.operators[0].inputs = np.array([*graph.operators[0].inputs, -1], np.int32)
    flatbuffer.prune(model)
    assert graph.operators[0].inputs.tolist() == [0, 1, -1]
