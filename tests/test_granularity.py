"""`granularity="per_tensor"`: one scale for a kernel, in the simulation and in the file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import kernels
from kerasq.kernel_wrapper import KernelWrapper
from tests import networks

L = keras.layers
TARGETS = ("litert", "litert-x86-64", "tflm")


def wrappers(q):
    return {x.name: x for x in q.layers if isinstance(x, KernelWrapper)}


def assert_one_scale(lite):
    """Kernels and biases of a file lie on one grid each."""
    found = [x for x in lite.tensors if x.name.endswith(("/kernel", "/bias"))]
    assert found
    for tensor in found:
        assert np.size(tensor.grid.scale) == 1 and tensor.grid.axis is None, tensor.name
    return {x.name: x for x in found}


def assert_exact(q, x, **options):
    """The file has one scale a kernel, and computes what its model does to the last code."""
    lite = kerasq.export_tflite(q, **options)
    report = kerasq.compare(q, lite, x=x)
    assert report.exact == 1.0 and report.max_lsb == 0, str(report)
    assert_one_scale(lite)
    return lite


# By the number of inputs, even or odd, as that of outputs: kernels take them by twos and eights.
LAYERS = {
    "CONV_2D": lambda n: L.Conv2D({8: 12, 9: 5}[n], 3, padding="same"),
    "grouped": lambda n: L.Conv2D({8: 12, 9: 15}[n], 3, groups={8: 2, 9: 3}[n], padding="same"),
    "DEPTHWISE_CONV_2D": lambda n: L.DepthwiseConv2D(3, depth_multiplier={8: 3, 9: 1}[n]),
    "FULLY_CONNECTED": lambda n: L.Dense({8: 12, 9: 5}[n]),
    "one unit": lambda n: L.Dense(1),
    "TRANSPOSE_CONV": lambda n: L.Conv2DTranspose({8: 12, 9: 5}[n], 3, strides=2, padding="same"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8", "w4a16"])
def test_every_operator_on_ties(scheme, target):
    """Where all scales are powers of two, sums are full of ties, which kernels round in turn."""
    rng = np.random.default_rng(0)
    inputs = [keras.Input((5, 5, n), name=f"x{n}") for n in (8, 9)]
    outputs = [make(x.shape[-1])(x) for make in LAYERS.values() for x in inputs]
    model = keras.Model(inputs, outputs)
    q = kerasq.quantize_model(model, scheme, target=target, granularity="per_tensor")
    x = [rng.integers(-3, 4, (8, *y.shape[1:])).astype("float32") / 16 for y in inputs]
    kerasq.calibrate(q, x)
    weight_bits, code_bits = int(scheme[1]), 8 if scheme.endswith("a8") else 16
    largest = 2 ** (weight_bits - 1) - 1
    for y in inputs:
        q.get_layer(f"{y.name}_quantize").output_quantizer.assign_range(*ends(1 / 16, code_bits))
    for layer in wrappers(q).values():
        codes = rng.integers(-largest, largest + 1, layer.kernel.shape).astype("float32")
        codes.flat[0] = largest
        layer.kernel.assign(codes / 128)
        if layer.weight_quantizer.range_gradient != "none":
            layer.weight_quantizer.kernel_range.assign([largest / 128])
        # From 1/2 on, the multipliers are those of sums that fill the output's codes.
        step = 2.0 ** (-11 + (4 if weight_bits == 8 else 1))
        layer.output_quantizer.assign_range(*ends(step, code_bits))
    lite = assert_exact(q, x, check=False)
    for layer in wrappers(q).values():
        assert layer.integer_weights().grid.scale == 1 / 128
        read = x[0 if layer.input.shape[-1] == 8 else 1]
        sums = layer.sums(read, layer.input_grids()[0], layer.integer_weights())
        steps = np.asarray(sums, np.float64) / (16 * 128 * float(layer.grid().scale))
        assert np.mean(steps - np.floor(steps) == 0.5) > 0.02, layer.name
    types = {x.type for x in assert_one_scale(lite).values() if x.name.endswith("/kernel")}
    packs = weight_bits == 4 and (target != "tflm" or code_bits == 8)
    assert types == ({"int4", "int8"} if packs else {"int8"})


def ends(step, bits):
    """The range of a grid of that step."""
    return (-(2 ** (bits - 1)) + (bits > 8)) * step, (2 ** (bits - 1) - 1) * step
