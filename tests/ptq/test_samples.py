"""What units read and return: windows of images, and how much of it is kept."""

import keras
import numpy as np
import pytest

from kerasq.ptq import samples
from kerasq.ptq.data import Data
from kerasq.ptq.frontier import Frontier
from kerasq.ptq.units import by_layer
from kerasq.retargeting import retarget
from kerasq.wrappers import infer, infer_float
from tests import networks

L = keras.layers


def frontiers(q, plain, data):
    return Frontier(q, data, infer), Frontier(plain, data, infer_float)


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv2D(3, 3, padding="same", strides=2, use_bias=False),
        L.Conv2D(3, (5, 2), padding="same", dilation_rate=(2, 1)),
        L.Conv2D(4, 3, padding="valid", groups=2),
        L.DepthwiseConv2D((4, 3), padding="same", depth_multiplier=2),
        L.DepthwiseConv2D(3, padding="same", strides=2),
        L.Conv1D(3, 4, padding="causal", dilation_rate=2),
    ],
)
def test_a_window_is_computed_as_in_the_whole_image(layer, monkeypatch):
    monkeypatch.setattr(samples, "WINDOW", 4)
    shape = (19, 4) if isinstance(layer, L.Conv1D) else (19, 14, 4)
    model = keras.Sequential([keras.Input(shape), layer])
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype("f")
    q = networks.quantized(model, x)
    (unit,) = by_layer(q)
    cuts = samples.windows(unit)
    plain, data = retarget(q, "litert"), Data(q, x, None)
    pair = unit, *by_layer(plain)
    seen = samples.collect(frontiers(q, plain, data), pair, data, cuts, np.random.default_rng(0))
    assert seen.y[0].shape[1:-1] == (4,) * (len(shape) - 1) and len(seen) > 8
    wrapper = unit.wrappers[0]
    bias = None if wrapper.bias is None else wrapper.bias.value
    found = wrapper.run_on(seen.real[0], wrapper.flat_kernel(), bias, cuts.layer)
    np.testing.assert_allclose(found, seen.y[0], atol=1e-5)
    # The quantized network reads the same places.
    step = float(wrapper.input_grids()[0].scale)
    np.testing.assert_allclose(seen.x[0], seen.real[0], atol=0.6 * step)
    assert np.abs(seen.x[0] - seen.real[0]).max() > 0.0


def test_images_that_are_no_larger_are_whole():
    q = networks.quantized(networks.residual())
    assert {samples.windows(unit) for unit in by_layer(q)} == {None}


def test_memory_is_bounded_whatever_the_samples(monkeypatch):
    model = networks.mlp()
    q, x = networks.quantized(model), np.repeat(networks.data(model), 40, axis=0)
    x += np.random.default_rng(0).normal(0.0, 0.1, x.shape).astype("f")
    plain = retarget(q, "litert")
    pair = by_layer(q)[0], by_layer(plain)[0]
    size = 4 * (6 + 6 + 12)
    monkeypatch.setattr(samples, "MEMORY", 50 * size)
    rng = np.random.default_rng(0)
    data = Data(q, x, None)
    assert data.count == len(x) > 200
    both = frontiers(q, plain, data)
    assert len(samples.collect(both, pair, data, None, rng)) == 50
    monkeypatch.setattr(samples, "MEMORY", 1)
    assert len(samples.collect(both, pair, data, None, rng)) == 1


@pytest.mark.parametrize("form", ["array", "list", "generator"])
def test_batches_can_be_read_again(form):
    model = networks.mlp()
    q, x = networks.quantized(model), networks.data(model)
    batches = [x[:8], x[8:16]]
    given = {"array": x[:16], "list": batches, "generator": iter(batches)}[form]
    data = Data(q, given, None)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(data)), x[:16])
    assert data.count == 16
