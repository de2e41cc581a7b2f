"""Operators of a file, each as a file of its own."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import kerasq
from kerasq.litert import excerpt, flatbuffer
from kerasq.litert.excerpt import OWN_KERNELS, Excerpts
from kerasq.litert.partitions import partitions
from kerasq.litert.runtime import KERNELS
from tests import networks

L = keras.layers


def lstm():
    series = keras.Input((2, 4), name="series")
    return keras.Model(series, L.Dense(2, name="head")(L.LSTM(5)(series)))


def integer(model, **options):
    return kerasq.export_tflite(networks.quantized(model, **options)).content


def halves():
    """Weights of float16, which DEQUANTIZE makes float32 once."""
    converter = tf.lite.TFLiteConverter.from_keras_model(networks.mlp())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


@functools.cache
def residual():
    return integer(networks.residual())


FILES = {
    "padding, joins, averages, a softmax outside of XNNPACK": residual,
    "packed weights, int16": lambda: integer(networks.mlp(), scheme="w4a16"),
    "several inputs and outputs": lambda: integer(networks.two_by_two()),
    "variables": lambda: integer(lstm(), recurrence="fused"),
    "a loop": lambda: kerasq.export_float_tflite(lstm()).content,
    "weights that are computed": halves,
}


def run(content, kernels, feed):
    """An interpreter that has run a file on what `feed` gives by place of an input."""
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    for place, detail in enumerate(interpreter.get_input_details()):
        interpreter.set_tensor(detail["index"], feed(place, detail))
    interpreter.invoke()
    return interpreter


def whole(content, seed=0):
    """By index, random inputs of a file and what it computes for them."""
    rng, fed = np.random.default_rng(seed), {}

    def feed(place, detail):
        is_float = detail["dtype"] == np.float32
        values = (
            rng.normal(size=detail["shape"]) if is_float else rng.integers(-90, 90, detail["shape"])
        )
        fed[detail["index"]] = values.astype(detail["dtype"])
        return fed[detail["index"]]

    opened = run(flatbuffer.with_outputs(content), KERNELS["optimized"], feed)
    found = {x["index"]: opened.get_tensor(x["index"]) for x in opened.get_output_details()}
    return found | fed


@pytest.mark.parametrize("name", FILES)
def test_what_is_cut_out_computes_what_the_whole_file_does(name):
    content = FILES[name]()
    values, model = whole(content), flatbuffer.read(content)
    names = [x.name.decode() for x in model.subgraphs[0].tensors]
    excerpts, outside = Excerpts(model, values), partitions(content).outside
    for index, op in enumerate(model.subgraphs[0].operators):
        assert excerpts.missing(index) == ""
        cut = excerpts.cut(index)
        assert flatbuffer.op_kinds(flatbuffer.read(cut.content))  # It is a file.
        is_own = names[op.outputs[0]] in outside or not cut.inputs
        # Within a loop, XNNPACK has parts as well.
        is_plain = is_own and not excerpts.holds_subgraphs(index)
        kernels = OWN_KERNELS if is_plain else KERNELS["optimized"]
        alone = run(cut.content, kernels, lambda place, _, cut=cut: values[cut.inputs[place]])
        # XNNPACK takes alone what it takes in the file.
        parts = partitions(cut.content)
        assert is_own or (parts.parts, parts.outside) == (1, ())
        details = alone.get_output_details()
        for i, detail in zip(op.outputs, details, strict=True):
            tensor = model.subgraphs[0].tensors[i]
            if tensor.isVariable:  # Its first values, 0, which the operator that reads it changes.
                zero = tensor.quantization.zeroPoint[0]
                np.testing.assert_array_equal(alone.get_tensor(detail["index"]), zero)
            elif cut.inputs:  # Of constants XNNPACK writes nothing that could be read.
                np.testing.assert_array_equal(alone.get_tensor(detail["index"]), values[i])


def test_an_excerpt_has_the_ends_of_its_operator():
    content = residual()
    model, lite = flatbuffer.read(content), kerasq.TFLiteModel(content)
    index = [op.name for op in lite.ops].index("ADD")
    cut = Excerpts(model, whole(content)).cut(index)
    alone = kerasq.TFLiteModel(cut.content)
    assert [(x.name, x.inputs, x.outputs) for x in alone.ops] == [lite.ops[index]]
    for end in (*alone.inputs, *alone.outputs):
        own = next(x for x in lite.tensors if x.name == end.name)
        assert (end.shape, end.dtype, end.type) == (own.shape, own.dtype, own.type)
        assert end.grid.equals(own.grid)
    assert [lite.tensors[i].name for i in cut.inputs] == [x.name for x in alone.inputs]
    # Its own constants alone.
    assert len(cut.content) < len(content) / 3


def test_operators_of_other_shapes_or_options_are_of_another_kind():
    image = keras.Input((8, 8, 4))
    x = L.Conv2D(4, 3, padding="same")(image)
    x = L.Conv2D(4, 3, padding="same")(x)  # As the one before, with other weights and grids.
    x = L.Conv2D(4, 3, strides=2, padding="same")(x)
    x = L.Reshape((4, 16))(x)
    x = L.Reshape((16, 4))(x)
    content = integer(keras.Model(image, x))
    model = flatbuffer.read(content)
    found = Excerpts(model, whole(content))
    kinds = [found.kind(i) for i in range(len(model.subgraphs[0].operators))]
    assert [kinds.index(x) for x in kinds] == [0, 0, 2, 3, 4]


def test_what_has_no_numbers_cannot_be_cut_out():
    content = residual()
    model, values = flatbuffer.read(content), whole(content)
    graph = model.subgraphs[0]
    first, last = graph.operators[0], graph.operators[-1]
    assert Excerpts(model, {}).missing(0) == "reads a tensor without values"
    graph.tensors[first.outputs[0]].type = schema.TensorType.STRING
    last.outputs = []
    found = Excerpts(model, values)
    assert found.missing(0) == "works on string tensors"
    assert found.missing(len(graph.operators) - 1) == "has no output"


def test_a_file_without_operators_hands_on_what_it_is_fed():
    alone = run(excerpt.empty(), KERNELS["optimized"], lambda *_: np.array([7], np.int8))
    assert alone.get_tensor(alone.get_output_details()[0]["index"]).tolist() == [7]
