"""The width rule, and that all who tell widths tell the same."""

import dataclasses

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph as graphs
from kerasq.plan import Kind, Plan, lacks, read_bits, written_bits
from kerasq.prepare.decompose import decompose
from kerasq.scheme import FLOAT_BITS, resolve
from kerasq.targets import LITERT
from kerasq.wrappers import QuantizeWrapper, quantized_by
from tests import networks

L = keras.layers


@pytest.mark.parametrize(
    ("op", "scheme", "width", "read"),
    [
        ("CONV_2D", "w8a8", FLOAT_BITS, 8),  # a boundary behind a float layer
        ("CONV_2D", "w8a8", 16, 8),
        ("CONV_2D", "w8a8", 4, 4),  # codes of 4 bits are int8 codes
        ("CONV_2D", "w4a4", 8, 4),
        ("CONV_2D", "w4a4", 2, 2),
        ("CONV_2D", "w2a2", 4, 2),
        ("CONV_2D", "w8a16", 8, 16),
        ("CONV_2D", "float", 8, 8),
        ("BATCH_MATMUL", "w4a4", 8, 4),
        ("ADD", "w4a4", 8, 8),  # sums are of 8 bits
        ("ADD", "w4a4", 4, 4),
        ("ADD", "w4a16", 4, 16),
        ("AVERAGE_POOL_2D", "w4a4", 4, 8),  # keeps its input's grid
        ("AVERAGE_POOL_2D", "w4a4", 8, 8),
        ("MEAN", "w4a4", 4, 4),
        ("CONCATENATION", "w8a8", 16, 16),  # requantizes its inputs itself
        ("CONCATENATION", "w8a8", FLOAT_BITS, 8),
        ("MAXIMUM", "w8a16", 8, 8),
    ],
)
def test_what_an_operator_reads(op, scheme, width, read):
    assert read_bits(op, resolve(scheme), width) == read


@pytest.mark.parametrize(
    ("scheme", "is_cut", "is_read_narrow", "written"),
    [
        ("w8a8", True, False, 8),
        ("w8a16", True, True, 16),
        ("w4a4", True, True, 4),
        ("w4a4", True, False, 8),
        ("w4a4", False, True, 8),
        ("float", False, False, FLOAT_BITS),
    ],
)
def test_what_a_layer_writes(scheme, is_cut, is_read_narrow, written):
    assert written_bits(resolve(scheme), is_cut, is_read_narrow) == written


def _schemes(graph, scheme):
    names = [x.name for x in graph.model.inputs] + [x.source.name for x in graph.nodes]
    return dict.fromkeys(names, scheme)


def test_an_operator_that_the_target_does_not_have():
    operators = {name: op for name, op in LITERT.operators.items() if name != "MEAN"}
    kernels = {key: kernel for key, kernel in LITERT.kernels.items() if key[0] != "MEAN"}
    target = dataclasses.replace(LITERT, name="no_mean", operators=operators, kernels=kernels)
    graph = decompose(graphs.read(networks.mobile()))
    plan = Plan(graph, _schemes(graph, "w8a8"), frozenset(), target)
    with pytest.raises(ValueError, match=r"the target 'no_mean'.*operator MEAN it does not have"):
        plan.check_kernels()


def test_what_has_no_kernel():
    assert lacks(LITERT, "ELU", resolve("w8a16")) == "int16"
    assert lacks(LITERT, "ELU", resolve("w4a4")) is None


def _narrow():
    """Few bits read by a sum, a convolution, a concatenation, an average, a part and a product."""
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    a = L.Conv2D(6, 3, padding="same", activation="relu", name="a")(image)
    b = L.Conv2D(6, 3, padding="same", activation="relu", name="b")(a)
    y = L.Add(name="sum")([a, b])
    y, part = keras.ops.split(y, 2, axis=-1)
    part = L.Conv2D(6, 3, activation="relu", padding="same", name="part")(part)
    y = L.Concatenate(name="both")([a, y, part])
    y = L.AveragePooling2D(2, name="pool")(L.Conv2D(8, 1, activation="relu", name="c")(y))
    y = L.Reshape((16, 8), name="rows")(y)
    y = L.Attention(name="attention")([y, y])
    return keras.Model(image, L.Dense(4, name="head")(L.Flatten(name="flat")(y)))


def test_records_of_a_network():
    graph = decompose(graphs.read(_narrow()))
    plan = Plan(graph, _schemes(graph, "w4a4"), frozenset(), LITERT)
    found = {node.layer.name: plan[node] for node in graph.nodes}
    assert found["a"].reads == (4,) and found["a"].writes == 4
    assert found["a"].relu is not None and found["a_relu"].kind is Kind.FUSED
    assert found["b"].reads == (4,) and found["b"].writes == 8  # only the sum reads it
    assert found["sum"].reads == (4, 8) and found["sum"].writes == 8
    split = next(call for name, call in found.items() if name.startswith("split"))
    assert split.kind is Kind.PASS_THROUGH and split.reads == (8,)
    assert found["part"].reads == (4,) and found["part"].writes == 8
    assert found["both"].reads == (4, 8, 8) and found["both"].writes == 8
    assert found["c"].reads == (4,) and found["c"].writes == 8
    assert found["pool"].reads == (8,) and found["pool"].writes == 8
    assert found["attention"].op == "BATCH_MATMUL" and found["attention"].reads == (4, 4)
    assert found["attention_probabilities"].writes == 8


def test_all_outputs_of_a_split_count():
    image = keras.Input((8, 8, 4), name="image")
    y = L.Conv2D(4, 1, activation="relu", name="first")(image)
    left, right = keras.ops.split(y, 2, axis=-1)
    right = L.Conv2D(2, 1, name="second")(right)
    model = keras.Model(image, L.Flatten()(L.Concatenate()([left, right])))
    q = kerasq.quantize_model(model, "w4a4")
    assert q.get_layer("first").output_bits == 4
    assert "int4" not in " ".join(x.name for x in q.layers if x.name != "image_quantize_int4")


@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w2a3", "w8a4"])
def test_wrappers_have_the_widths_of_the_plan(scheme):
    model = _narrow()
    q = kerasq.quantize_model(model, scheme)
    summary = {x.name: x.output_bits for x in kerasq.summary(q).layers}
    for layer in q.layers:
        if isinstance(layer, QuantizeWrapper):
            assert layer.output_bits == summary[layer.name]
            for x in graphs.origin(layer.output)[1]:
                source = quantized_by(x)
                if source is not None and layer.rule.op != "QUANTIZE":
                    width = source.output_bits
                    assert read_bits(layer.rule.op, layer.bits, width) == width, layer.name


@pytest.mark.parametrize("scheme", ["w8a4", "w4a2"])
def test_sensitivity_measures_what_is_quantized(scheme):
    """Sums and averages that read few bits, and boundaries behind a split, a pooling, a softmax."""
    model = _narrow()
    x = networks.images(model)
    base = kerasq.sensitivity(model, x, candidates=(scheme, "w8a8")).base
    q = kerasq.quantize_model(model, scheme)
    kerasq.calibrate(q, x)
    assert base == pytest.approx(networks.sqnr(model, q, x), abs=1e-3)


def test_outputs_of_few_bits_are_int8():
    model = networks.residual()
    q = networks.quantized(model, scheme="w4a4")
    lite = kerasq.export_tflite(q, output_dtype="int8")
    assert lite.outputs[0].dtype == np.int8
