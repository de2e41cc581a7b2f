"""The passes: every one returns a graph whose model computes the same."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph as graphs
from kerasq.prepare.passes import PASSES, prepare
from tests import networks

L = keras.layers


def _norms(graph):
    return [x for x in graph.model.layers if isinstance(x, L.BatchNormalization)]


@pytest.mark.parametrize("make", [networks.residual, networks.mobile, networks.convolutions])
def test_passes_keep_the_function(make):
    model = make()
    x = networks.samples(model, 8)
    expected = networks.run(model, x)
    graph = graphs.read(model)
    for run in PASSES.values():
        graph = run(graph, frozenset())
        y = networks.run(graph.model, x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_a_folded_graph_has_no_batch_normalization():
    graph = graphs.read(networks.residual())
    assert _norms(graph) and _norms(prepare(graph, skip=("fold",)))
    folded = prepare(graph)
    assert not _norms(folded)
    gains = np.array([gain for x in folded.nodes for gain in x.source.gain])
    assert len(set(gains)) > 2 and (np.log2(gains) % 1 == 0).all()


def test_the_kernel_that_is_trained_is_in_units_of_the_gain():
    """Steps are those of a BatchNormalization whose statistics are frozen, but for a root of 2."""
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, use_bias=False, name="conv")(image))
    model = keras.Model(image, y)
    model.get_layer("norm").moving_variance.assign([400.0, 1600.0, 2500.0, 6400.0])
    model.get_layer("norm").gamma.assign([0.5, -1.0, 0.0, 3.0])
    kernel = model.get_layer("conv").kernel.numpy()
    deviation = np.sqrt(np.array([400.0, 1600.0, 2500.0, 6400.0]) + 1e-3)
    gain = np.array([0.5, -1.0, 0.0, 3.0]) / deviation
    folded = prepare(graphs.read(model))
    (found,) = [x.source.gain for x in folded.nodes]
    units = np.array(found)[[0, 1, 3]]
    np.testing.assert_array_equal(units, 2.0 ** np.round(np.log2(np.abs(gain[[0, 1, 3]]))))
    assert found[2] == 1.0  # Switched off.
    np.testing.assert_allclose(
        folded.model.get_layer("conv").kernel.numpy(), kernel * gain, rtol=1e-5
    )
    trained = kerasq.quantize_model(model, batch_norm="fold").get_layer("conv").kernel.numpy()
    ratios = np.linalg.norm((kernel * gain).reshape(-1, 4), axis=0)[[0, 1, 3]]
    ratios /= np.linalg.norm(trained.reshape(-1, 4), axis=0)[[0, 1, 3]]
    np.testing.assert_allclose(ratios, units, rtol=1e-5)


def test_layers_that_stay_float_keep_their_batch_normalization():
    graph = graphs.read(networks.residual())
    name = next(
        node.layer.name
        for node in graph.nodes
        if isinstance(graph.consumers(node.output)[0].layer, L.BatchNormalization)
    )
    assert len(_norms(prepare(graph, keep=frozenset([name])))) == 1


@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_batch_normalization_that_is_to_stay_float_does(batch_norm):
    """Also behind another one, which becomes a layer with a kernel."""
    norms = [L.BatchNormalization(), L.BatchNormalization(name="norm")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *norms, L.Flatten()])
    q = kerasq.quantize_model(model, overrides={"norm": "float"}, batch_norm=batch_norm)
    assert type(q.get_layer("norm")) is L.BatchNormalization


def test_the_power_of_0_is_1():
    x = keras.Input((3,))
    y = keras.ops.power(keras.layers.Dense(3)(x), np.zeros(3, "float32"))
    q = networks.quantized(keras.Model(x, y))
    lite = kerasq.export_tflite(q)
    assert lite.float_ops == []
    np.testing.assert_allclose(lite.predict(np.ones((2, 3), "float32")), 1.0, rtol=0.01)


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        (keras.ops.ones_like, 1.0),
        (keras.ops.zeros_like, 0.0),
        (lambda y: keras.ops.full_like(y, -2.5), -2.5),
    ],
    ids=["ones", "zeros", "full"],
)
@pytest.mark.parametrize("size", [1, 3])  # Of one value a sample, the converter makes a constant.
def test_a_tensor_of_one_value(operation, value, size):
    x = keras.Input((4,))
    y = keras.layers.Dense(size)(x)
    q = networks.quantized(keras.Model(x, [y, operation(y)]))
    lite = kerasq.export_tflite(q, batch_size=2)
    assert lite.float_ops == []
    _, found = lite.predict(np.ones((3, 4), "float32")).values()
    np.testing.assert_allclose(found, np.full((3, size), value), rtol=0.01)


def test_a_leaky_relu_of_negative_slope():
    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.leaky_relu(x, negative_slope=-0.5))
    values = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    q = networks.quantized(model, values)
    found = kerasq.export_tflite(q).predict(values)
    np.testing.assert_allclose(found, np.where(values < 0, -0.5, 1.0) * values, atol=0.03)


def test_a_relu_up_to_0_is_0():
    x = keras.Input((4,))
    q = networks.quantized(keras.Model(x, keras.layers.ReLU(max_value=0.0)(x)))
    assert not kerasq.export_tflite(q).predict(np.ones((3, 4), "float32")).any()


def test_outputs_of_other_types_than_float32():
    x = keras.Input((4,))
    y = keras.layers.Dense(2)(x)
    q = networks.quantized(keras.Model(x, [y, keras.ops.ones_like(y, dtype="float16")]))
    _, found = kerasq.export_tflite(q).predict(np.ones((3, 4), "float32")).values()
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.ones((3, 2)))


def test_an_exponent_that_is_longer_than_its_base():
    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.power(keras.layers.Dense(1)(x), np.zeros(3, "float32")))
    assert kerasq.quantize_model(model).output.shape == (None, 3)
