"""What nodes know of the user's model, and that it comes through every pass."""

import keras
import pytest

from kerasq import graph as graphs
from kerasq.prepare.passes import PASSES, prepare
from tests import networks

L = keras.layers


def _twice():
    """A model called twice, a nested one in it, and a layer without weights called twice."""
    networks.set_seed(0)
    inner = keras.Sequential(
        [keras.Input((6, 4)), L.EinsumDense("abc,cd->abd", (6, 3))], name="inner"
    )
    sequence = keras.Input((6, 4))
    y = L.BatchNormalization(name="norm")(L.Dense(4, "gelu", name="dense")(sequence))
    outer = keras.Model(sequence, L.Softmax(name="soft")(inner(y)), name="outer")
    a, b = keras.Input((6, 4), name="a"), keras.Input((6, 4), name="b")
    return keras.Model([a, b], L.Add(name="sum")([outer(a), outer(b)]))


def test_sources_of_a_graph_that_was_read():
    graph = graphs.read(_twice())
    found = {node.layer.name: node.source for node in graph.nodes}
    first, further = found["dense"], found["dense_2"]
    assert first.name == first.weights_of == further.name == further.weights_of == "dense"
    assert [x.name for x in further.models] == ["outer"]
    nested = next(source for name, source in found.items() if name.startswith("einsum"))
    assert [x.name for x in nested.models] == ["outer", "inner"]
    assert found["sum"] == graphs.Source(name="sum", weights_of="sum")


@pytest.mark.parametrize("count", range(1, len(PASSES) + 1))
def test_sources_come_through_passes(count):
    before = graphs.read(_twice())
    graph = before
    for run in [*PASSES.values()][:count]:
        graph = run(graph, frozenset())
    models = {node.source.name: node.source.models for node in before.nodes}
    layers = {node.layer.name: node for node in graph.nodes}
    assert len(layers) == len(graph.nodes)
    assert {node.source.name for node in graph.nodes} == {*models}
    assert all(node.source.models == models[node.source.name] for node in graph.nodes)
    # Every layer with weights stands twice, and the second call has those of the first.
    shared = [node for node in graph.nodes if node.source.weights_of != node.layer.name]
    assert {node.source.name for node in shared} == {
        node.source.name for node in graph.nodes if node.layer.weights
    }
    for node in shared:
        first = layers[node.source.weights_of]
        assert first.source.weights_of == first.layer.name
        assert (first.source.name, type(first.layer)) == (node.source.name, type(node.layer))
        for one, other in zip(first.layer.weights, node.layer.weights, strict=True):
            assert keras.ops.all(one == other)


def test_a_layer_without_weights_shares_none():
    for node in prepare(graphs.read(_twice())).nodes:
        if node.source.name == "soft":
            assert node.source.weights_of == node.layer.name


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_float32_in_a_graph(policy):
    image = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 3, activation="relu", dtype=policy, name="conv")(image)
    graph = graphs.read(keras.Model(image, L.Flatten(name="flat", dtype="float32")(y)))
    for found in (graph, prepare(graph)):
        assert {x.dtype for node in found.nodes for x in node.outputs} == {"float32"}
        types = {node.source.name: node.source.training_dtype for node in found.nodes}
        assert types == {"conv": policy.removeprefix("mixed_"), "flat": "float32"}


def test_why_a_layer_was_not_opened():
    class Own(L.Layer):
        def call(self, x):
            return x + float(x[0, 0])

        def compute_output_shape(self, input_shape):
            return input_shape

    x = keras.Input((4,))
    graph = graphs.read(keras.Model(x, Own(name="own")(x)), closed=lambda layer: False)
    assert "not 'SymbolicTensor'" in graph.nodes[0].source.refusal
