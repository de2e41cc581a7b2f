import keras
import numpy as np
import pytest

import kerasq
from kerasq.analysis import cost
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.scheme import resolve
from tests import networks

L = keras.layers


@pytest.fixture(scope="module")
def model():
    return networks.quantized(networks.mobile(), scheme="w4a8", overrides={"logits": "w8a16"})


def test_macs_of_each_kind(model):
    assert cost.macs(model.get_layer("stem")) == 6 * 6 * 8 * 3 * 3 * 3
    assert cost.macs(model.get_layer("depthwise")) == 6 * 6 * 16 * 3 * 3
    assert cost.macs(model.get_layer("logits")) == 8 * 5
    assert cost.macs(model.get_layer("sum")) == 0
    bits = cost.bit_operations(model.get_layer("logits"), resolve("w8a16"))
    assert bits == 8 * 5 * 8 * 16


def test_depth_multiplier():
    image = keras.Input((6, 6, 3))
    layer = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")
    keras.Model(image, layer(image))
    assert cost.fan_in(layer) == 9
    assert cost.macs(layer) == 4 * 4 * 6 * 9
    # 54 codes of 4 bits and 6 biases.
    assert cost.weight_bytes(layer, resolve("w8a8")) == 54 + 24


def test_products_of_two_tensors():
    x = keras.Input((5, 8), name="x")
    q = kerasq.quantize_model(keras.Model(x, L.MultiHeadAttention(2, 3, name="heads")(x, x)))
    # Query, key, value and output; scores and contexts.
    assert kerasq.summary(q).macs == 4 * 5 * 8 * 6 + 2 * 2 * 5 * 5 * 3
    scores = next(layer for layer in q.layers if layer.name.endswith("scores"))
    assert cost.macs(scores) == 2 * 5 * 5 * 3
    assert cost.bit_operations(scores, resolve("w4a8")) == 2 * 5 * 5 * 3 * 8 * 8


def test_a_whole_lstm():
    x = keras.Input((5, 3), name="x")
    q = networks.quantized(keras.Model(x, L.LSTM(4, name="lstm")(x)), target="tflm")
    layer = next(layer for layer in q.layers if hasattr(layer, "cell_bits"))
    assert cost.macs(layer) == 5 * (3 + 4) * 16
    tensors = kerasq.export_tflite(q).tensors
    codes = sum(x.bytes for x in tensors if "/kernel_" in x.name or "/recurrent_" in x.name)
    assert codes == (3 + 4) * 16
    # Zeros of biases, which are equal, are in the file once.
    assert cost.weight_bytes(layer, resolve("w8a8")) == codes + 4 * 16


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16", "w4a16"])
def test_bytes_are_those_of_the_file(scheme):
    q = networks.quantized(networks.residual(), scheme=scheme)
    lite = kerasq.export_tflite(q)
    sizes = {tensor.name: tensor.bytes for tensor in lite.tensors}
    for layer in q.layers:
        if isinstance(layer, KernelWrapper):
            stored = sizes[f"{layer.name}/kernel"] + sizes[f"{layer.name}/bias"]
            assert cost.weight_bytes(layer, resolve(scheme)) == stored


def test_bytes_of_a_float_layer():
    q = kerasq.quantize_model(networks.mlp(), overrides={"head": "float"})
    assert cost.weight_bytes(q.get_layer("head"), resolve("float")) == 4 * (8 * 3 + 3)
    # A quantized layer, were it float: its ranges do not count.
    assert cost.weight_bytes(q.get_layer("hidden"), resolve("float")) == 4 * (6 * 12 + 12)


def test_accumulators_of_the_worst_input():
    """Against all inputs that there are: two int8 features."""
    model = keras.Sequential([keras.Input((2,)), L.Dense(3, name="head")])
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    q = networks.quantized(model, x)
    layer = q.get_layer("head")
    weights, grid = layer.integer_weights(), layer.input_grids()[0].numpy()
    codes = np.arange(grid.qmin, grid.qmax + 1) - int(grid.zero_point)
    inputs = np.stack(np.meshgrid(codes, codes), -1).reshape(-1, 2)
    totals = inputs @ weights.codes.numpy() + weights.bias.numpy()
    least, greatest = int(totals.min()), int(totals.max())
    bits = cost.accumulator_bits(layer)
    assert -(2 ** (bits - 1)) <= least and greatest < 2 ** (bits - 1)
    assert not (-(2 ** (bits - 2)) <= least and greatest < 2 ** (bits - 2))


def test_accumulator_bound():
    model = networks.quantized(networks.residual())
    branch = model.get_layer("branch")  # 3 * 3 * 8 = 72 products
    assert cost.accumulator_bound(branch, resolve("w8a8")) == 8 + 8 + 7
    assert cost.accumulator_bound(branch, resolve("w4a16")) == 4 + 16 + 7
    assert cost.accumulator_bits(branch) <= cost.accumulator_bound(branch, resolve("w8a8")) + 1
