import keras
import numpy as np
import pytest

import kerasq
from kerasq.export import convert, flatbuffer
from kerasq.export.flatbuffer import Op
from tests import networks

L = keras.layers


def converted(model, batch_size=1):
    q = networks.quantized(model)
    content, tagged = convert.convert(q, batch_size)
    return q, flatbuffer.read(content), tagged


def ops(model):
    return [
        flatbuffer.op_name(flatbuffer.op_code(model, op)) for op in model.subgraphs[0].operators
    ]


def test_every_quantize_carries_a_tag_and_its_exact_grid():
    _, model, tagged = converted(networks.residual())
    tensors = model.subgraphs[0].tensors
    found = {}
    for op in model.subgraphs[0].operators:
        if flatbuffer.op_code(model, op) == Op.QUANTIZE:
            tensor = tensors[op.outputs[0]]
            named = [tagged[tag] for tag in convert.tags_of(tensor.name.decode())]
            (name, grid), *_ = [(name, grid) for name, grid in named if grid is not None]
            found[name] = grid
            written = flatbuffer.grid_of(tensor)
            np.testing.assert_allclose(written.scale, grid.scale, rtol=1e-5)
            np.testing.assert_array_equal(
                np.broadcast_to(written.zero_point, np.shape(grid.zero_point)), grid.zero_point
            )
    kernels = {"conv/kernel", "branch/kernel", "probs_linear/kernel"}
    assert kernels | {"image_quantize", "conv", "branch", "add", "cat", "probs"} <= set(found)
    assert all((found[name].axis is not None) == (name in kernels) for name in found)


def test_tags_name_every_layer():
    q, _, tagged = converted(networks.residual())
    layers = [x.name for x in q.layers if not isinstance(x, L.InputLayer)]
    # Traced more than once, the function tags each layer again.
    assert list(dict.fromkeys(name for name, grid in tagged if grid is None)) == layers


def test_graph_is_float_between_quantize_and_dequantize():
    _, model, _ = converted(networks.mobile())
    names = ops(model)
    assert names.count("DEPTHWISE_CONV_2D") == 2 and names.count("FULLY_CONNECTED") == 1
    assert not {"BATCH_NORM", "MUL", "SUB", "RELU", "RELU6"} & set(names)
    tensors = model.subgraphs[0].tensors
    for op in model.subgraphs[0].operators:
        if flatbuffer.op_code(model, op) in (Op.CONV_2D, Op.ADD):
            assert {tensors[i].type for i in op.inputs} == {flatbuffer.Type.FLOAT32}


@pytest.mark.parametrize("batch_size", [1, 7])
def test_shapes_are_fixed(batch_size):
    _, model, _ = converted(networks.residual(), batch_size)
    graph = model.subgraphs[0]
    assert list(graph.tensors[graph.inputs[0]].shape) == [batch_size, 12, 12, 3]
    assert not {"SHAPE", "STRIDED_SLICE", "PACK"} & set(ops(model))


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        (convert._TAG.format(3), [3]),
        ("kerasq_op12_/conv_1/Conv2D;kerasq_op1_/kerasq_op0_", [12, 1, 0]),
        ("conv/kerasq", []),
        ("", []),
    ],
)
def test_tags_of(name, tags):
    assert convert.tags_of(name) == tags


def test_layers_whose_names_look_like_tags():
    inputs = keras.Input((4,), name="kerasq_op0_")
    model = keras.Model(inputs, L.Dense(2, name="kerasq_op1_")(inputs))
    q, _, _ = converted(model)
    x = networks.data(model)
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(lite.predict(x), q.predict(x, verbose=0))
    assert lite.inputs[0].name == "kerasq_op0_" and lite.outputs[0].name == "kerasq_op1_"
