import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.export import convert, flatbuffer, lower
from kerasq.export.flatbuffer import Op
from kerasq.grid import Grid
from kerasq.runtime import TFLiteModel
from tests import networks

L = keras.layers
ONE = Grid.from_range(-1.0, 1.0)
TWO = Grid.from_range(-0.5, 2.0)


class Traced:
    """A function of float tensors with fake-quant ops, converted and lowered."""

    def __init__(self):
        self.tagged = []

    def fake_quant(self, x, grid, name):
        self.tagged.append((name, grid))
        return tf.quantization.fake_quant_with_min_max_vars(
            x,
            grid.low,
            grid.high,
            num_bits=grid.bits,
            name=convert._TAG.format(len(self.tagged) - 1),
        )

    def lower(self, function, shape, input_dtype="int8", output_dtype="int8"):
        @tf.function(input_signature=[tf.TensorSpec(shape, name="input_0")])
        def serve(x):
            self.tagged.clear()
            return {"output_0": function(x)}

        module = tf.Module()
        module.serve = serve
        content = tf.lite.TFLiteConverter.from_concrete_functions(
            [serve.get_concrete_function()], module
        ).convert()
        boundary = lower.Boundary(
            input_dtype=input_dtype,
            output_dtype=output_dtype,
            input_names=["x"],
            output_names=["y"],
            output_layers=["layer"],
        )
        return TFLiteModel(lower.lower(content, self.tagged, boundary))


def names(lite):
    return [op.name for op in lite.ops]


# Grids through operators that only move values (design.md, fact 15).


def test_equal_grids_around_a_reshape():
    traced = Traced()

    def function(x):
        x = tf.reshape(traced.fake_quant(x, ONE, "a"), [1, 6])
        return traced.fake_quant(x, ONE, "b")

    lite = traced.lower(function, [1, 2, 3])
    assert names(lite) == ["RESHAPE"]
    for tensor in (*lite.inputs, *lite.outputs):
        assert (tensor.grid.scale, tensor.grid.zero_point) == (ONE.scale, ONE.zero_point)
    x = np.linspace(-2, 2, 6, dtype="f").reshape(1, 2, 3)
    np.testing.assert_array_equal(lite.predict(x), ONE.dequantize(ONE.quantize(x)).reshape(1, 6))


def test_different_grids_around_a_reshape_need_one_quantize():
    traced = Traced()

    def function(x):
        x = tf.reshape(traced.fake_quant(x, ONE, "a"), [1, 6])
        return traced.fake_quant(x, TWO, "b")

    lite = traced.lower(function, [1, 2, 3])
    assert sorted(names(lite)) == ["QUANTIZE", "RESHAPE"]
    x = np.linspace(-2, 2, 6, dtype="f").reshape(1, 2, 3)
    expected = TWO.dequantize(TWO.quantize(ONE.dequantize(ONE.quantize(x)))).reshape(1, 6)
    np.testing.assert_allclose(lite.predict(x), expected, atol=TWO.scale * 1.01)
    assert (lite.outputs[0].grid.scale, lite.outputs[0].grid.zero_point) == (
        TWO.scale,
        TWO.zero_point,
    )


def test_the_grid_behind_a_reshape_is_that_of_the_operator_before_it():
    traced = Traced()

    def function(x):
        x = tf.tanh(traced.fake_quant(x, TWO, "a"))
        fixed = Grid(scale=np.float32(1 / 128), zero_point=np.int32(0))
        return traced.fake_quant(tf.reshape(x, [1, 6]), fixed, "b")

    lite = traced.lower(function, [1, 2, 3])
    assert names(lite) == ["TANH", "RESHAPE"]
    tanh = next(t for t in lite.tensors if t.name == lite.ops[0].outputs[0])
    assert tanh.grid.scale == lite.outputs[0].grid.scale == np.float32(1 / 128)
    x = np.linspace(-0.5, 2, 6, dtype="f").reshape(1, 2, 3)
    np.testing.assert_allclose(lite.predict(x), np.tanh(x).reshape(1, 6), atol=0.02)


def test_requantization_in_a_row_is_one_quantize():
    traced = Traced()
    lite = traced.lower(
        lambda x: traced.fake_quant(traced.fake_quant(x, ONE, "a"), TWO, "b"), [1, 4]
    )
    assert names(lite) == ["QUANTIZE"]
    x = np.array([[-1.0, -0.3, 0.4, 0.9]], "f")
    expected = TWO.dequantize(TWO.quantize(ONE.dequantize(ONE.quantize(x))))
    np.testing.assert_allclose(lite.predict(x), expected, atol=TWO.scale * 1.01)


# What cannot be lowered.


def test_an_operator_without_integer_form_is_named():
    traced = Traced()
    with pytest.raises(ValueError, match=r"Every operator must have an integer form.* SIN at"):
        traced.lower(
            lambda x: traced.fake_quant(tf.sin(traced.fake_quant(x, ONE, "a")), ONE, "b"), [1, 4]
        )


def test_an_operator_on_float_values_is_named():
    traced = Traced()
    with pytest.raises(ValueError, match=r"Every operator must have an integer form.* TANH at"):
        traced.lower(lambda x: traced.fake_quant(tf.tanh(x), ONE, "a"), [1, 4])


def test_an_output_without_a_grid_is_named():
    traced = Traced()
    with pytest.raises(ValueError, match=r"Every operator must have an integer form.* TANH at"):
        traced.lower(lambda x: tf.tanh(traced.fake_quant(x, ONE, "a")), [1, 4])


def test_a_fake_quant_of_someone_else():
    traced = Traced()
    text = "Every QUANTIZE must come from a fake-quant op of kerasq"
    with pytest.raises(ValueError, match=text):
        traced.lower(
            lambda x: tf.quantization.fake_quant_with_min_max_vars(x, -1.0, 1.0, name="other"),
            [1, 4],
        )


@pytest.mark.parametrize("change", [{"scale": ONE.scale * 1.01}, {"zero_point": np.int32(5)}])
def test_a_grid_that_the_converter_changed(change):
    traced = Traced()

    def function(x):
        x = tf.tanh(traced.fake_quant(x, ONE, "a"))
        y = traced.fake_quant(x, ONE, "layer")
        traced.tagged[1] = ("layer", dataclasses.replace(ONE, **change))
        return y

    with pytest.raises(ValueError, match="The converter must keep the grid of 'layer'"):
        traced.lower(function, [1, 4])


def test_an_output_range_that_no_kernel_reaches():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,), name="x"), L.Dense(2, name="thin")])
    q = networks.quantized(model)
    q.get_layer("thin").output_quantizer.assign_range(0.0, 1e-5)
    text = r"output range of layer 'thin' .* must be below 256.* calibrate on other data"
    with pytest.raises(ValueError, match=text):
        kerasq.export_tflite(q)


# The file.


@pytest.mark.parametrize("make", [networks.residual, networks.mobile, networks.mlp])
def test_codes_and_grids_of_the_file_against_numpy(make):
    """Activations from the ranges, weights and biases from the float variables, all in NumPy."""
    q = networks.quantized(make())
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
        kernel = layer.kernel.numpy() * layer.kernel_gain.numpy()
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
        Op.AVERAGE_POOL_2D: 2,
        Op.RESHAPE: 1,
        Op.FULLY_CONNECTED: 12,
    }


def test_nothing_is_left_over_in_the_file():
    lite = kerasq.export_tflite(networks.quantized(networks.residual()))
    content = flatbuffer.read(lite.content)
    graph = content.subgraphs[0]
    used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs)}
    assert used == set(range(len(graph.tensors)))
    assert {t.buffer for t in graph.tensors} | {0} == set(range(len(content.buffers)))
    kernels = sum(int(np.prod(t.shape)) for t in lite.tensors if t.name.endswith("/kernel"))
    assert len(lite.content) < kernels + 8000


# The oracle: the converter's own lowering (design.md, facts 2 and 14).


def oracle(q, monkeypatch, dtype=tf.int8):
    """The same concrete function, lowered by the converter itself."""
    seen = []
    real = tf.lite.TFLiteConverter.from_concrete_functions

    def spy(functions, module):
        seen.append((functions, module))
        return real(functions, module)

    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_concrete_functions", spy)
    ours = kerasq.export_tflite(q)
    ((functions, module),) = seen
    converter = real(functions, module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = dtype
    return ours, TFLiteModel(converter.convert())


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
def test_convolutions_equal_those_of_the_converters_own_lowering(monkeypatch, batch_norm):
    model = networks.convolutions()
    q = networks.quantized(model, batch_norm=batch_norm)
    ours, theirs = oracle(q, monkeypatch)
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
