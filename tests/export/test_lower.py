import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import graph
from kerasq.export import convert, lower, marks
from kerasq.export.signature import Signature
from kerasq.grid import Grid
from kerasq.litert import flatbuffer
from kerasq.litert.flatbuffer import Op
from kerasq.litert.runtime import TFLiteModel
from kerasq.targets import LITERT
from tests import networks

L = keras.layers
ONE = Grid.from_range(-1.0, 1.0)
TWO = Grid.from_range(-0.5, 2.0)
HALF = Grid(scale=np.float32(1 / 128), zero_point=np.int32(0))
KERNEL = Grid(scale=np.full(2, 1 / 127, "f"), zero_point=np.zeros(2, np.int64), axis=-1)


class Traced:
    """A function of float tensors with markers, converted and lowered."""

    def __init__(self):
        self.marks = []

    def mark(self, x, grid, name="", quantizes=False):
        if quantizes:
            return self.put(x, marks.Quantized(name=name, grid=grid, reads_float=False))
        if grid is not None:
            return self.put(x, marks.Computed(name=name, grid=grid))
        return self.put(x, marks.Named(name=name))

    def put(self, x, mark):
        self.marks.append(mark)
        return convert.marked(x, len(self.marks) - 1)

    def lower(self, function, shape, input_dtype=None, output_dtype=None, target=LITERT):
        @tf.function(input_signature=[tf.TensorSpec(shape, name="input_0")])
        def serve(x):
            self.marks.clear()
            return {"output_0": function(x)}

        module = tf.Module()
        module.serve = serve
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [serve.get_concrete_function()], module
        )
        converter.allow_custom_ops = True
        signature = Signature(
            input_dtype=input_dtype,
            output_dtype=output_dtype,
            float_inputs=[False],
            preprocessing=[None],
            input_names=["x"],
            output_names=["y"],
            output_layers=["layer"],
        )
        converted = convert.Converted(
            content=converter.convert(), marks=self.marks, layers=[], target=target
        )
        return TFLiteModel(lower.lower(converted, signature))


def names(lite):
    return [op.name for op in lite.ops]


def on(grid, x):
    return grid.dequantize(grid.quantize(x))


# Grids through operators that only move values.


def test_a_reshape_keeps_the_grid_of_its_input():
    traced = Traced()
    lite = traced.lower(
        lambda x: tf.reshape(traced.mark(x, ONE, "a", quantizes=True), [1, 6]), [1, 2, 3]
    )
    assert names(lite) == ["RESHAPE"]
    for tensor in (*lite.inputs, *lite.outputs):
        assert (tensor.grid.scale, tensor.grid.zero_point) == (ONE.scale, ONE.zero_point)
    x = np.linspace(-2, 2, 6, dtype="f").reshape(1, 2, 3)
    np.testing.assert_array_equal(lite.predict(x), on(ONE, x).reshape(1, 6))


def test_another_grid_behind_a_reshape_is_one_quantize():
    traced = Traced()

    def function(x):
        x = tf.reshape(traced.mark(x, ONE, "a", quantizes=True), [1, 6])
        return traced.mark(x, TWO, "b", quantizes=True)

    lite = traced.lower(function, [1, 2, 3])
    assert names(lite) == ["RESHAPE", "QUANTIZE"]
    x = np.linspace(-2, 2, 6, dtype="f").reshape(1, 2, 3)
    np.testing.assert_allclose(
        lite.predict(x), on(TWO, on(ONE, x)).reshape(1, 6), atol=TWO.scale * 1.01
    )
    assert lite.outputs[0].grid.equals(TWO)


def test_requantization_in_a_row_is_one_quantize():
    traced = Traced()
    lite = traced.lower(
        lambda x: traced.mark(traced.mark(x, ONE, "a", quantizes=True), TWO, "b", quantizes=True),
        [1, 4],
    )
    assert names(lite) == ["QUANTIZE"]
    x = np.array([[-1.0, -0.3, 0.4, 0.9]], "f")
    np.testing.assert_allclose(lite.predict(x), on(TWO, on(ONE, x)), atol=TWO.scale * 1.01)


def test_quantizing_onto_the_same_grid_is_nothing():
    traced = Traced()
    lite = traced.lower(
        lambda x: traced.mark(
            traced.mark(tf.tanh(traced.mark(x, ONE, "a", quantizes=True)), HALF, "tanh"),
            HALF,
            "again",
            quantizes=True,
        ),
        [1, 4],
    )
    assert names(lite) == ["TANH"]


# What stays float.


def test_an_operator_without_its_own_marker_stays_float():
    traced = Traced()

    def function(x):
        x = traced.mark(x, ONE, "a", quantizes=True)
        y = traced.mark(tf.sin(x), None, "sine")
        return traced.mark(y + x, TWO, "b", quantizes=True)

    lite = traced.lower(function, [1, 4])
    assert names(lite) == ["DEQUANTIZE", "SIN", "ADD", "QUANTIZE"]
    assert [op.name for op in lite.float_ops] == ["SIN", "ADD"]
    x = np.array([[-1.0, -0.3, 0.4, 0.9]], "f")
    expected = on(TWO, np.sin(on(ONE, x)) + on(ONE, x))
    np.testing.assert_allclose(lite.predict(x), expected, atol=TWO.scale * 1.01)


def test_a_float_output():
    traced = Traced()
    lite = traced.lower(lambda x: tf.tanh(traced.mark(x, ONE, "a", quantizes=True)), [1, 4])
    assert names(lite) == ["DEQUANTIZE", "TANH"]
    assert lite.outputs[0].name == "layer" and lite.outputs[0].dtype == np.float32


# What cannot be lowered.


def weighted(channels, kernel=KERNEL):
    return marks.Weighted(name="b", grid=ONE, kernel=kernel, bias=np.zeros(channels, np.int64))


WEIGHTS = tf.ones([4, 2])
CASES = {
    "SIN at 'b': target 'litert' has no SIN on integers": lambda t, x: t.mark(
        tf.sin(t.mark(x, ONE, "a", quantizes=True)), ONE, "b"
    ),
    "TANH at 'b': it reads '.*input_0:0', which is not on a grid": lambda t, x: t.mark(
        tf.tanh(x), ONE, "b"
    ),
    "FULLY_CONNECTED at 'b': it reads .*, which is not on a grid": lambda t, x: t.put(
        x @ WEIGHTS, weighted(2)
    ),
    "FULLY_CONNECTED at 'b': .* has weights, and the layer gives no grid": lambda t, x: t.mark(
        t.mark(x, ONE, "a", quantizes=True) @ WEIGHTS, ONE, "b"
    ),
    "TANH at 'b': TANH has no weights, and the layer gives a grid for some": lambda t, x: t.put(
        tf.tanh(t.mark(x, ONE, "a", quantizes=True)), weighted(4)
    ),
    "CONV_2D at 'b': its kernel is computed": lambda t, x: t.put(
        tf.nn.conv2d(
            tf.reshape(t.mark(x, ONE, "a", quantizes=True), [1, 2, 2, 1]),
            tf.reshape(tf.sin(x), [2, 2, 1, 1]),
            1,
            "VALID",
        ),
        weighted(1),
    ),
    "CONCATENATION at 'b': it reads .'sine.*, which are not on a grid": lambda t, x: t.mark(
        tf.concat([t.mark(x, ONE, "a", quantizes=True), t.mark(tf.sin(x), None, "sine")], 1),
        ONE,
        "b",
    ),
}


@pytest.mark.parametrize("reason", CASES)
def test_an_operator_without_integer_form_says_why(reason):
    traced = Traced()
    text = f"Every operator must have an integer form. Received: {reason}.*scheme 'float'"
    with pytest.raises(ValueError, match=text):
        traced.lower(lambda x: CASES[reason](traced, x), [1, 4])


def test_an_operator_that_the_target_lacks():
    operators = {name: x for name, x in LITERT.operators.items() if name != "TANH"}
    kernels = {key: x for key, x in LITERT.kernels.items() if key[0] != "TANH"}
    small = dataclasses.replace(LITERT, name="small", operators=operators, kernels=kernels)
    traced = Traced()
    with pytest.raises(ValueError, match="TANH at 'b': target 'small' has no TANH on integers"):
        traced.lower(
            lambda x: traced.mark(tf.tanh(traced.mark(x, ONE, "a", quantizes=True)), ONE, "b"),
            [1, 4],
            target=small,
        )


def test_an_operator_of_codes_on_float_values_is_named():
    traced = Traced()
    table = marks.LookedUp(name="a", grid=ONE, table=np.zeros(256, np.int8))
    with pytest.raises(
        ValueError, match=r"'a' must read integer codes. Received: the float tensor"
    ):
        traced.lower(lambda x: traced.put(x, table), [1, 4])


REASONS = {
    "SIN in layer .* stays float: SIN is not known to keep a grid": tf.sin,
    "CONCATENATION in layer .* stays float: CONCATENATION reads floats": lambda x: tf.concat(
        [x, tf.sin(x)], 1
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_why_an_operator_stays_float_is_logged(reason, caplog):
    caplog.set_level("DEBUG", logger="kerasq.export.lower")
    traced = Traced()
    traced.lower(lambda x: REASONS[reason](traced.mark(x, ONE, "a", quantizes=True)), [1, 4])
    assert re.search(reason, caplog.text)


def test_an_operator_that_reads_several_grids_stays_float(caplog):
    caplog.set_level("DEBUG", logger="kerasq.export.lower")
    traced = Traced()

    def function(x):
        x = traced.mark(x, ONE, "a", quantizes=True)
        return tf.concat([x, traced.mark(x, TWO, "b", quantizes=True)], 1)

    assert names(traced.lower(function, [1, 4])).count("DEQUANTIZE") == 2
    assert "CONCATENATION reads several grids, and none is given for its output" in caplog.text


def test_an_operator_that_litert_does_not_have():
    traced = Traced()
    with pytest.raises(ValueError, match=r"must be one that LiteRT has. Received: .* Digamma"):
        traced.lower(lambda x: tf.math.digamma(traced.mark(x, ONE, "a", quantizes=True)), [1, 4])


def test_two_layers_on_one_tensor():
    traced = Traced()

    def function(x):
        y = tf.tanh(traced.mark(x, ONE, "a", quantizes=True))
        return traced.mark(y, ONE, "one") + traced.mark(y, ONE, "other")

    with pytest.raises(RuntimeError, match=r"must keep layers apart. .*'one' and 'other'"):
        traced.lower(function, [1, 4])


# The file.


@pytest.mark.parametrize("make", [networks.residual, networks.mobile, networks.mlp])
def test_codes_and_grids_of_the_file_against_numpy(make):
    """Activations from the ranges, weights and biases from the float variables, all in NumPy."""
    q = networks.quantized(make(), batch_norm="fold")
    lite = kerasq.export_tflite(q)
    content = flatbuffer.read(lite.content)
    stored = {t.name.decode(): t for t in content.subgraphs[0].tensors}
    checked = 0
    for layer in q.layers:
        quantizer = getattr(layer, "output_quantizer", None)
        if quantizer is not None:
            name = layer.name.removesuffix("_quantize")
            low = 0.0 if quantizer.range_min is None else float(quantizer.range_min)
            scale = (float(quantizer.range_max) - low) / 255
            found = stored[name].quantization
            assert found.scale[0] == pytest.approx(scale, rel=1e-6)
            assert found.zeroPoint[0] == np.floor(-low / scale + 0.5) - 128
        if f"{layer.name}/kernel" not in stored:
            continue
        tensor = stored[f"{layer.name}/kernel"]
        kernel = layer.rule.unflatten(layer.folded_kernel(), layer.kernel.shape).numpy()
        channels = kernel.reshape(*kernel.shape[:-2], -1) if kernel.ndim == 4 else kernel
        if layer.rule.op == "CONV_2D":
            channels = kernel
        axes = tuple(range(channels.ndim - 1))
        scale = np.abs(channels).max(axis=axes) / 127
        # OHWI, 1HWC and OI: where LiteRT expects the channels.
        expected = {
            "CONV_2D": lambda k: (k.transpose(3, 0, 1, 2), 0),
            "DEPTHWISE_CONV_2D": lambda k: (k[None], 3),
            "FULLY_CONNECTED": lambda k: (k.T, 0),
        }[layer.rule.op](np.rint(channels / scale))
        codes = flatbuffer.constant(content, tensor)
        assert codes.dtype == np.int8 and codes.shape == expected[0].shape
        assert np.mean(codes != expected[0]) < 0.01
        np.testing.assert_allclose(tensor.quantization.scale, scale, rtol=1e-5)
        assert tensor.quantization.quantizedDimension == expected[1]
        assert not np.any(tensor.quantization.zeroPoint)

        bias = stored[f"{layer.name}/bias"]
        step = layer.input_grids()[0].numpy().scale * tensor.quantization.scale
        np.testing.assert_allclose(bias.quantization.scale, step, rtol=1e-6)
        values = flatbuffer.constant(content, bias)
        assert values.dtype == np.int32
        assert np.abs(values - np.rint(layer.bias.numpy() / step)).max() <= 1
        checked += 1
    assert checked >= 3


def test_operator_versions_are_as_low_as_they_may_be():
    content = flatbuffer.read(kerasq.export_tflite(networks.quantized(networks.mobile())).content)
    found = {code.builtinCode: code.version for code in content.operatorCodes}
    assert found == {
        Op.CONV_2D: 3,
        Op.DEPTHWISE_CONV_2D: 3,
        Op.ADD: 2,
        Op.MEAN: 2,
        Op.FULLY_CONNECTED: 4,
    }


def test_nothing_is_left_over_in_the_file():
    lite = kerasq.export_tflite(networks.quantized(networks.residual()))
    content = flatbuffer.read(lite.content)
    graph = content.subgraphs[0]
    used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs)}
    assert used == set(range(len(graph.tensors)))
    described = {entry.buffer for entry in content.metadata}
    assert {t.buffer for t in graph.tensors} | {0} | described == set(range(len(content.buffers)))
    kernels = sum(int(np.prod(t.shape)) for t in lite.tensors if t.name.endswith("/kernel"))
    assert len(lite.content) < kernels + 8000


# The oracle: the converter's own lowering of fake-quant ops.


def oracle(q):
    """What the converter itself makes of the model with fake-quant ops."""

    def fake_quant(x, grid):
        suffix = "" if grid.axis is None else "_per_channel"
        return getattr(tf.quantization, f"fake_quant_with_min_max_vars{suffix}")(
            x, grid.low, grid.high, num_bits=8, narrow_range=grid.narrow
        )

    def run(node, x):
        layer = node.layer
        if not hasattr(layer, "rule"):
            return layer(x)
        with tf.init_scope():
            grid = layer.grid().numpy()
            if hasattr(layer, "integer_weights"):
                weights = layer.integer_weights()
                plain = weights.grid.numpy()
                kernel = (weights.codes * plain.scale).numpy()
                step = layer.input_grids()[0].numpy().scale * plain.scale
                bias = (weights.bias.numpy() * step).astype("float32")
        if hasattr(layer, "integer_weights"):
            y = layer.run_on(x, fake_quant(tf.constant(kernel), plain), tf.constant(bias))
        else:
            y = layer.layer(x)
        return fake_quant(y, grid)

    spec = tf.TensorSpec([1, *q.inputs[0].shape[1:]], name="x")
    serve = tf.function(lambda x: graph.run(q, x, run)[0], input_signature=[spec])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return TFLiteModel(converter.convert())


def computed(lite):
    """Grid of each weight, bias and output by operator, and the constants' values."""
    content = flatbuffer.read(lite.content)
    graph, found = content.subgraphs[0], []
    for op in graph.operators:
        code = flatbuffer.op_name(flatbuffer.op_code(content, op))
        if code in ("QUANTIZE", "DEQUANTIZE"):
            continue
        tensors = [graph.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0]
        found.append(
            (
                code,
                [
                    (
                        list(t.shape),
                        t.type,
                        flatbuffer.constant(content, t),
                        None if t.quantization is None else t.quantization.scale,
                        None if t.quantization is None else t.quantization.zeroPoint,
                        0 if t.quantization is None else t.quantization.quantizedDimension,
                    )
                    for t in tensors
                ],
            )
        )
    return found


@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_convolutions_equal_those_of_the_converters_own_lowering(batch_norm):
    model = networks.convolutions()
    q = networks.quantized(model, batch_norm=batch_norm)
    ours, theirs = kerasq.export_tflite(q), oracle(q)
    mine, other = computed(ours), computed(theirs)
    assert [code for code, _ in mine] == [code for code, _ in other]
    for (code, a), (_, b) in zip(mine, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x[:2] == y[:2], code
            assert (x[2] is None) == (y[2] is None), code
            if x[2] is not None:
                np.testing.assert_array_equal(x[2], y[2], err_msg=code)
            np.testing.assert_allclose(x[3], y[3], rtol=1e-6, err_msg=code)
            np.testing.assert_array_equal(x[4], y[4], err_msg=code)
            assert x[5] == y[5] or np.size(x[3]) == 1, code
    x = networks.data(model, 32)
    np.testing.assert_array_equal(
        ours.predict(x, dequantize=False), theirs.predict(x, dequantize=False)
    )
    reference = [
        TFLiteModel(lite.content, kernels="reference").predict(x, dequantize=False)
        for lite in (ours, theirs)
    ]
    np.testing.assert_array_equal(*reference)
