import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.comparison.report import LayerReport, Report
from kerasq.litert import flatbuffer
from tests import networks

L = keras.layers


@pytest.fixture(scope="module")
def residual():
    """A quantized CNN, 70 samples (more than one chunk), and its export."""
    q = networks.quantized(networks.residual())
    return q, networks.data(q, 70), kerasq.export_tflite(q)


def corrupted(lite, layer, change):
    """`lite` with codes of a layer's constant changed in its content."""
    content = flatbuffer.read(lite.content)
    (tensor,) = [t for t in content.subgraphs[0].tensors if t.name.decode() == layer]
    values = flatbuffer.constant(content, tensor).copy()
    change(values)
    content.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    return kerasq.TFLiteModel(flatbuffer.write(content))


def cells(line):
    """What a line of a printed table says, column by column."""
    return re.split(r" {2,}", line.strip())


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_good_model_is_exact(residual, is_traced):
    q, x, lite = residual
    # Of batches that come one by one there may be many: those are traced.
    report = kerasq.compare(q, lite, x=iter(np.split(x, [64])) if is_traced else x)
    assert (report.max_lsb, report.exact, report.within_one_lsb) == (0, 1.0, 1.0)
    assert (report.argmax_agreement, report.samples, report.kernels) == (1.0, 70, "optimized")
    layers = {layer.name: layer for layer in report.layers}
    assert [layer.max_lsb for layer in report.layers] == [0] * len(layers)
    assert [layer.exact for layer in report.layers] == [1.0] * len(layers)
    assert [layer.max_error for layer in report.layers] == [0.0] * len(layers)
    assert {layer.dtype for layer in report.layers} == {"int8"} and report.max_error == 0.0
    assert {name: layer.op for name, layer in layers.items()} == {
        "conv": "CONV_2D",
        "branch": "CONV_2D",
        "add": "ADD",
        "cat": "CONCATENATION",
        "pool": "MAX_POOL_2D",
        "pad": "PAD",
        "average": "DEPTHWISE_CONV_2D",
        "gap": "MEAN",
        "probs_linear": "FULLY_CONNECTED",
        "probs": "SOFTMAX",
    }
    assert layers["conv"].values == 70 * 6 * 6 * 8
    assert layers["probs"].values == 70 * 10


def test_the_table(residual):
    q, x, lite = residual
    lines = str(kerasq.compare(q, lite, x=x[:8])).splitlines()
    assert cells(lines[0]) == ["layer", "operator", "type", "max LSB", "exact", "max error"]
    assert set(lines[1]) == {"-", " "}
    assert cells(lines[2]) == ["conv", "CONV_2D", "int8", "0", "100.000 %", "0"]
    assert len({len(line) for line in lines[:12]}) == 1
    assert lines[12] == ""
    assert lines[13].startswith("End to end, 8 samples, optimized kernels: max 0 LSB, 100.000 %")
    assert lines[13].endswith("max error 0, argmax agreement 100.000 %.")


@pytest.mark.parametrize(
    ("make", "batch_norm"),
    [(networks.residual, "fold"), (networks.mobile, "keep"), (networks.two_by_two, "fold")],
)
def test_layers_are_exact_on_default_kernels_and_close_on_reference_ones(make, batch_norm):
    q = networks.quantized(make(), batch_norm=batch_norm)
    x = networks.data(q, 64)
    lite = kerasq.export_tflite(q)
    report = kerasq.compare(q, lite, x=x)
    assert {layer.max_lsb for layer in report.layers} == {0} and report.max_lsb == 0
    reference = kerasq.compare(q, kerasq.TFLiteModel(lite.content, kernels="reference"), x=x)
    assert reference.kernels == "reference"
    assert max(layer.max_lsb for layer in reference.layers) <= 1
    # Half of the sums of two by two codes lie on ties, which the reference rounds another way.
    others = [x for x in reference.layers if x.name != "average"]
    assert min(x.exact for x in others if x.op != "MEAN") >= 0.99
    assert min(x.exact for x in others) >= 0.7
    assert min(x.exact for x in reference.layers) >= 0.6


@pytest.mark.parametrize(("dtype", "batch_size"), [("int8", 3), ("uint8", 1), ("float32", 3)])
def test_types_and_batch_size_of_the_export_do_not_matter(dtype, batch_size):
    q = networks.quantized(networks.sequential())
    x = networks.data(q)
    lite = kerasq.export_tflite(q, input_dtype=dtype, output_dtype=dtype, batch_size=batch_size)
    report = kerasq.compare(q, lite, x=x[:10])
    assert (report.max_lsb, report.samples) == (0, 10)
    assert {layer.max_lsb for layer in report.layers} == {0}
    assert {"conv", "logits"} <= {layer.name for layer in report.layers}


def test_every_layer_that_computes_is_reported():
    q = networks.quantized(networks.two_by_two())
    report = kerasq.compare(q, kerasq.export_tflite(q), x=networks.samples(q, 8))
    names = {"left_hidden", "right_hidden", "total", "both", "score_linear", "score"}
    layers = {layer.name: layer.op for layer in report.layers}
    assert names | {"label_linear", "label"} <= set(layers)
    assert (layers["total"], layers["score_linear"]) == ("ADD", "FULLY_CONNECTED")


# Differences are found where they are.


@pytest.mark.parametrize(
    ("layer", "constant"), [("conv", "kernel"), ("branch", "bias"), ("probs_linear", "kernel")]
)
def test_one_wrong_code_shows_in_its_layer_alone(residual, layer, constant):
    q, x, lite = residual

    def change(values):
        values.flat[0] = -100 * np.sign(values.flat[0] or 1) if constant == "kernel" else 12345

    report = kerasq.compare(q, corrupted(lite, f"{layer}/{constant}", change), x=x)
    wrong = {found.name for found in report.layers if found.max_lsb > 0}
    assert wrong == {layer}
    (found,) = [found for found in report.layers if found.name == layer]
    # One output channel of a layer is touched, all other values stay exact.
    channels = {"conv": 8, "branch": 8, "probs_linear": 10}[layer]
    assert 1 - 1 / channels - 1e-9 <= found.exact < 1.0
    step = q.get_layer(layer).grid().numpy().scale
    assert found.max_error == pytest.approx(found.max_lsb * step, rel=1e-4)
    assert report.exact < 1.0 and report.max_lsb > 0


def test_end_to_end_figures_against_numpy(residual):
    q, x, lite = residual

    def change(values):
        values[:2] = np.roll(values[:2], 1)

    bad = corrupted(lite, "probs_linear/kernel", change)
    report = kerasq.compare(q, bad, x=x)
    ours, theirs = q.predict_on_batch(x), bad.predict(x)
    lsb = np.abs(np.rint((ours - theirs) * 256))
    assert report.max_lsb == lsb.max() > 1
    assert report.exact == pytest.approx(np.mean(lsb == 0))
    assert report.within_one_lsb == pytest.approx(np.mean(lsb <= 1))
    assert report.max_error == pytest.approx(np.abs(ours - theirs).max())
    assert report.argmax_agreement == pytest.approx(np.mean(ours.argmax(1) == theirs.argmax(1)))
    assert "probs_linear" in str(report)


def test_a_model_trained_on_differs_from_its_old_export():
    q = networks.quantized(networks.mlp())
    x = networks.data(q, 32)
    lite = kerasq.export_tflite(q)
    kernel = q.get_layer("head").kernel
    kernel.assign(-kernel.value)
    report = kerasq.compare(q, lite, x=x)
    assert {layer.name for layer in report.layers if layer.max_lsb > 0} == {"head"}


# Data.


def test_arrays_batches_and_datasets_are_the_same():
    q = networks.quantized(networks.sequential())
    x = networks.data(q, 70)
    lite = corrupted(
        kerasq.export_tflite(q), "conv/bias", lambda values: values.__setitem__(0, 5000)
    )
    whole = kerasq.compare(q, lite, x=x)
    labels = np.zeros(len(x))
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(16)
    for data in (dataset, [(x[:30], labels[:30]), (x[30:], labels[30:])], iter([x[:69], x[69:]])):
        assert kerasq.compare(q, lite, x=data) == whole


def test_two_inputs_as_a_dict_or_a_list():
    q = networks.quantized(networks.two_by_two())
    lite = kerasq.export_tflite(q)
    left, right = networks.samples(q, 8)
    report = kerasq.compare(q, lite, x=[left, right])
    assert (report.samples, report.max_lsb) == (8, 0)
    assert kerasq.compare(q, lite, x=[([left, right], np.zeros(8))]) == report


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.zeros((0, 12, 12, 3), "f"), "`data` must hold at least one sample"),
        (np.zeros((2, 12, 12, 1), "f"), "`data` must have the shape of model input 'image'"),
        (np.full((2, 12, 12, 3), np.nan, "f"), "`data` must be finite"),
    ],
    ids=["empty", "shape", "nan"],
)
def test_bad_data(residual, x, text):
    q, _, lite = residual
    with pytest.raises(ValueError, match=text):
        kerasq.compare(q, lite, x=x)


# Pairs that do not belong together.


def test_a_float_model(residual):
    with pytest.raises(ValueError, match=r"`model` must be a quantized model.*'residual'"):
        kerasq.compare(networks.residual(), residual[2], x=residual[1])


def test_the_export_of_another_model(residual):
    q = networks.quantized(networks.mlp())
    with pytest.raises(ValueError, match=r"`lite` must be an export of `model`"):
        kerasq.compare(q, residual[2], x=networks.data(q))


def test_the_export_of_another_model_with_the_same_inputs(residual):
    q = networks.quantized(networks.mobile())
    with pytest.raises(ValueError, match=r"`lite` must be an export of `model`"):
        kerasq.compare(q, residual[2], x=residual[1])


def test_a_float_file():
    model = networks.mlp()
    lite = kerasq.TFLiteModel(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with pytest.raises(ValueError, match=r"`lite` must be an export of `model`"):
        kerasq.compare(networks.quantized(model), lite, x=networks.data(model))


# Printing.


@pytest.mark.parametrize(
    ("exact", "text"),
    [(1.0, "100.000 %"), (1 - 1e-9, "99.999 %"), (0.999999, "99.999 %"), (0.5, "50.000 %")],
)
def test_percent_is_never_rounded_up_to_all(exact, text):
    layer = LayerReport(
        name="x", op="ADD", dtype="int8", max_lsb=1, exact=exact, max_error=0.25, values=10**9
    )
    report = Report(
        layers=(layer,),
        max_lsb=1,
        exact=exact,
        within_one_lsb=1.0,
        max_error=0.25,
        argmax_agreement=exact,
        samples=1,
        kernels="optimized",
    )
    lines = str(report).splitlines()
    assert cells(lines[2]) == ["x", "ADD", "int8", "1", text, "0.25"]
    assert f"max 1 LSB, {text} of the outputs exact, 100.000 % within 1 LSB" in lines[-1]
    assert f"max error 0.25, argmax agreement {text}." in lines[-1]


def test_a_float_layer_has_no_steps_to_print():
    layer = LayerReport(
        name="x", op="TANH", dtype="float32", max_lsb=None, exact=None, max_error=1e-7, values=9
    )
    report = Report(
        layers=(layer,),
        max_lsb=None,
        exact=None,
        within_one_lsb=None,
        max_error=1e-7,
        argmax_agreement=1.0,
        samples=1,
        kernels="optimized",
    )
    lines = str(report).splitlines()
    assert cells(lines[2]) == ["x", "TANH", "float32", "-", "-", "1e-07"]
    assert "the outputs are float, max error 1e-07, argmax agreement 100.000 %." in lines[-1]


def test_reports_are_frozen(residual):
    q, x, lite = residual
    report = kerasq.compare(q, lite, x=x[:1])
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field"):
        report.max_lsb = 3


def test_an_input_that_is_an_output_as_well():
    x = keras.Input((4,))
    same = keras.layers.Permute((1,), name="same")(x)
    q = networks.quantized(keras.Model(x, [same, keras.layers.Dense(3, name="head")(x)]))
    report = kerasq.compare(q, kerasq.export_tflite(q), x=networks.data(q))
    assert [layer.op for layer in report.layers] == ["-", "FULLY_CONNECTED"]
    assert report.exact == 1.0


def test_layers_behind_scaling_in_front_of_the_grid_are_exact():
    """The file is fed codes of what a layer of the model makes of the input."""
    variance = 10.0 ** np.arange(6)
    inputs = keras.Input((6,), name="features")
    scaled = L.Normalization(mean=100.0 * np.arange(6), variance=variance)(inputs)
    model = keras.Model(inputs, L.Dense(3, name="head")(scaled))
    x = np.random.default_rng(0).normal(100.0 * np.arange(6), np.sqrt(variance), (20, 6))
    q = networks.quantized(model, x.astype(np.float32))
    report = kerasq.compare(q, kerasq.export_tflite(q), x=x)
    assert (report.max_lsb, report.layers[0].max_lsb, report.layers[0].name) == (0, 0, "head")


@pytest.mark.parametrize(
    "last", [L.Reshape((4, 4, 3)), L.Permute((1, 2, 3)), L.ZeroPadding2D(0)], ids=lambda x: x.name
)
def test_what_does_nothing_at_the_end_leaves_the_layer_its_name(last):
    model = keras.Sequential([keras.Input((4, 4, 2)), L.Conv2D(3, 1, name="conv"), last])
    x = networks.data(model, 8)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q)
    report = kerasq.compare(q, lite, x=x)
    assert report.exact == 1.0 and [layer.name for layer in report.layers] == ["conv"]
    assert lite.output_names == [last.name]


def test_what_its_reader_swallowed_is_computed_again():
    """The file has one tensor for a Pad and a Flatten that does nothing, with the latter's name."""
    x = keras.Input((1,), name="x")
    padded = keras.ops.pad(x, ((0, 0), (1, 2)))
    model = keras.Model(x, [L.Flatten(name="flat")(padded), L.Add(name="twice")([x, x]), padded])
    data = np.ones((2, 1), "float32")
    q = kerasq.quantize_model(model, overrides={"x": "float"})
    kerasq.calibrate(q, data)
    assert kerasq.compare(q, kerasq.export_tflite(q), x=data).exact == 1.0
