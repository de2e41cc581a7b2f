import keras
import numpy as np
import pytest

import kerasq
from kerasq.export import convert, marks
from kerasq.litert import flatbuffer
from tests import networks

L = keras.layers


def converted(model, batch_size=1, **options):
    q = networks.quantized(model, **options)
    found = convert.convert(q, batch_size)
    return q, flatbuffer.read(found.content), found


def kinds(model):
    """What each operator is; markers by the name of their mark."""
    return [
        flatbuffer.op_name(flatbuffer.op_code(model, op)) for op in model.subgraphs[0].operators
    ]


def marked(model, found):
    """The marks in the order of the flatbuffer's markers."""
    graph = model.subgraphs[0]
    markers = [
        op
        for op in graph.operators
        if model.operatorCodes[op.opcodeIndex].customCode == convert.MARKER.encode()
    ]
    numbers = [
        int(flatbuffer.constant(model, graph.tensors[op.inputs[1]]).flat[0]) for op in markers
    ]
    return [found.marks[number] for number in numbers]


def test_every_grid_has_a_marker():
    q, model, found = converted(networks.residual())
    on_grids = {mark.name: mark for mark in marked(model, found) if hasattr(mark, "grid")}
    assert set(on_grids) == {x.name for x in q.layers if hasattr(x, "rule")}
    for name, mark in on_grids.items():
        assert mark.grid.equals(q.get_layer(name).grid().numpy())
        assert isinstance(mark, marks.Quantized) == (name == "image_quantize")


def test_layers_that_copy_are_named_and_dropped_ones_are_not():
    _, model, found = converted(networks.residual())
    names = {mark.name for mark in marked(model, found) if isinstance(mark, marks.Named)}
    assert names == {"pool", "pad"}
    assert "drop" in found.layers


def test_marks_of_layers_with_a_kernel_have_its_grid_and_the_bias_codes():
    q, _, found = converted(networks.residual(), batch_norm="fold")
    weighted = {mark.name: mark for mark in found.marks if isinstance(mark, marks.Weighted)}
    assert set(weighted) == {"conv", "branch", "probs_linear"}
    for name, mark in weighted.items():
        layer = q.get_layer(name)
        assert mark.kernel.equals(layer.integer_weights().grid.numpy())
        step = layer.input_grids()[0].numpy().scale * mark.kernel.scale
        assert mark.bias.dtype == np.int64
        assert np.abs(mark.bias - layer.bias.numpy() / step).max() <= 0.501


def test_the_graph_is_float_and_the_converter_finds_nothing_to_quantize():
    _, model, _ = converted(networks.mobile())
    names = kinds(model)
    assert names.count("DEPTHWISE_CONV_2D") == 1 and names.count("FULLY_CONNECTED") == 1
    assert not {"QUANTIZE", "DEQUANTIZE", "MUL", "SUB", "RELU", "RELU6"} & set(names)
    quantized = [t for t in model.subgraphs[0].tensors if flatbuffer.grid_of(t) is not None]
    assert not quantized


def test_relu_is_an_operator_only_where_the_clamp_of_the_grid_is_not():
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, activation="relu", name="conv")(image)
    model = keras.Model(image, x)
    for scheme, fused in (("w8a8", 0), ("w8a16", 1)):
        _, content, _ = converted(model, scheme=scheme)
        (op,) = [
            op
            for op, kind in zip(content.subgraphs[0].operators, kinds(content), strict=True)
            if kind == "CONV_2D"
        ]
        assert op.builtinOptions.fusedActivationFunction == fused


def test_float_layers_are_fused_and_marked_at_their_end():
    _, model, found = converted(networks.residual(), overrides={"conv": "float"})
    names = [getattr(mark, "name", "") for mark in marked(model, found)]
    assert "conv_relu" in names and not {"conv", "conv_norm"} & set(names)
    assert "MUL" not in kinds(model)  # BatchNormalization is in the convolution
    graph = model.subgraphs[0]
    first = next(
        op for op, kind in zip(graph.operators, kinds(model), strict=True) if kind == "CONV_2D"
    )
    assert found.layer_of(graph.tensors[first.outputs[0]].name.decode()) == "conv_relu"
    assert found.layer_of("PartitionedCall:0") is None


@pytest.mark.parametrize("batch_size", [1, 7])
def test_shapes_are_fixed(batch_size):
    _, model, _ = converted(networks.residual(), batch_size)
    graph = model.subgraphs[0]
    assert list(graph.tensors[graph.inputs[0]].shape) == [batch_size, 12, 12, 3]
    assert not {"SHAPE", "STRIDED_SLICE", "PACK"} & set(kinds(model))


def test_layers_whose_names_look_like_scopes():
    inputs = keras.Input((4,), name="kerasq_layer0_")
    model = keras.Model(inputs, L.Dense(2, name="kerasq_layer1_")(inputs))
    q, _, _ = converted(model)
    x = networks.data(model)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert lite.inputs[0].name == "kerasq_layer0_" and lite.outputs[0].name == "kerasq_layer1_"


def test_equal_layers_are_not_merged():
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, name="conv")(image)
    pools = [L.MaxPooling2D(2, name=f"pool{i}")(x) for i in range(2)]
    twice = L.Add(name="twice")([x, x])
    model = keras.Model(image, [L.Add(name="both")(pools), twice])
    q = networks.quantized(model)
    lite = kerasq.export_tflite(q)
    assert [op.name for op in lite.ops].count("MAX_POOL_2D") == 2
    assert [op.name for op in lite.ops].count("ADD") == 2
    report = kerasq.compare(q, lite, x=networks.data(model))
    assert report.max_lsb == 0 and {"pool0", "pool1"} <= {x.name for x in report.layers}


def test_layers_with_equal_weights_are_not_merged():
    """The converter would make one operator of them, and one of the outputs wrong."""
    image = keras.Input((8, 8, 3), name="image")
    branches = [
        L.Conv2D(4, 3, kernel_initializer="ones", activation=activation, name=f"branch{i}")(image)
        for i, activation in enumerate(("relu", None, "relu6"))
    ]
    dilated = [
        L.Conv2D(4, 3, dilation_rate=2, padding="same", name="dilated0")(image),
        L.Conv2D(4, 3, dilation_rate=2, padding="same", name="dilated1")(image),
        L.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="dilated2")(image),
    ]
    model = keras.Model(
        image, [L.Concatenate(name="cat")(branches), L.Concatenate(name="far")(dilated)]
    )
    q = networks.quantized(model)
    lite = kerasq.export_tflite(q)
    assert [op.name for op in lite.ops].count("CONV_2D") == 5
    report = kerasq.compare(q, lite, x=networks.data(model))
    assert report.max_lsb == 0 and report.exact == 1.0
