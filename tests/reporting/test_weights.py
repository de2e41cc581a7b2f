"""The figures of kernels."""

import numpy as np
import pytest

from kerasq.grid import Grid
from kerasq.reporting.counts import BINS
from kerasq.reporting.weights import CHANNELS, outliers, weights, with_bias


def quantized(kernel, axis=-1):
    peak = np.abs(kernel).max(0) if axis == -1 else np.abs(kernel).max()
    grid = Grid.from_range(-peak, peak, narrow=True, axis=axis)
    return grid.quantize(kernel), grid


def test_histograms_are_those_of_numpy():
    kernel = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    codes, grid = quantized(kernel)
    found = weights(codes, grid, kernel, None)
    drawn = found.drawn["float"]
    expected, _ = np.histogram(kernel, BINS, (drawn["low"], drawn["high"]))
    assert drawn["counts"] == expected.tolist()
    values, counts = np.unique(codes, return_counts=True)
    own = dict(zip(values.tolist(), counts.tolist(), strict=True))
    first = found.drawn["codes"]["first"]
    assert found.drawn["codes"]["counts"] == [own.get(first + i, 0) for i in range(255)]
    assert (found.codes_used, found.codes, found.bits) == (len(values), 255, 8)
    noise = grid.dequantize(codes) - kernel
    np.testing.assert_allclose(
        found.sqnr, 10 * np.log10(np.square(kernel).sum() / np.square(noise).sum()), rtol=1e-4
    )


def test_boxes_are_quartiles():
    kernel = np.arange(10.0).reshape(5, 2).astype(np.float32)
    codes, grid = quantized(kernel)
    boxes = weights(codes, grid, kernel, 2 * kernel).drawn["channels"]
    assert boxes["after"] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert boxes["before"] == [[0, 4, 8, 12, 16], [2, 6, 10, 14, 18]]
    np.testing.assert_allclose(boxes["reach"], [8, 9], rtol=1e-6)


def test_the_widest_channels_are_drawn():
    kernel = np.ones((3, 500), np.float32)
    kernel[:, 321] = 9
    codes, grid = quantized(kernel)
    channels = weights(codes, grid, kernel, None).drawn["channels"]["channel"]
    assert len(channels) <= CHANNELS and {0, 321, 499} <= {*channels}


def test_outliers_are_found():
    kernel = np.ones((9, 3), np.float32)
    kernel[4, 1] = -12
    step = np.array([1, 12, 1]) / 127
    ratio, channel, harm = outliers(kernel, step, False)
    assert (ratio, channel) == (12, 1)
    # 8 weights of 1 and one of 12, on steps of 12 / 127.
    assert harm == pytest.approx(10 * np.log10((8 + 144) / 9 * 12 / (12 / 127) ** 2))
    assert outliers(kernel, np.full(3, 12 / 127), True)[:2] == (12, 1)
    # Of one scale for all, a channel is wide beside others; of its own, it is even.
    kernel[:, 1] = 12
    assert outliers(kernel, step, False)[0] == 1
    assert outliers(kernel, np.full(3, 12 / 127), True)[:2] == (12, 1)
    for per_tensor in (False, True):
        assert outliers(np.zeros((4, 2)), np.ones(2), per_tensor)[0] == 1
    assert outliers(np.ones((1, 2)), np.ones(2), False)[0] == 1


def test_an_outlier_in_a_channel_of_next_to_nothing_does_no_harm():
    kernel = np.ones((9, 3), np.float32)
    kernel[:, 1] = [1e-3] + 8 * [1e-5]
    step = np.array([1, 1e-3, 1]) / 127
    ratio, channel, harm = outliers(kernel, step, False)
    assert (ratio, channel) == (pytest.approx(100), 1)
    assert harm == pytest.approx(10 * np.log10(12 / step[1] ** 2))


def test_of_several_outliers_the_worst_is_named():
    kernel = np.ones((1000, 3), np.float32)
    kernel[0] = [10, 100, 1]
    step = np.array([10, 100, 1]) / 127
    assert outliers(kernel, step, False)[:2] == (100, 1)
    kernel[:400, 1] = 0.0  # Nothing of it is left to be rounded.
    kernel[0, 1] = 1e4
    assert outliers(kernel, np.array([10, 1e4, 1]) / 127, False)[1] == 1


def test_of_a_file_alone_the_codes_are_known():
    codes, grid = quantized(np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
    found = weights(codes, grid, None, None)
    assert found.sqnr is None and found.drawn["float"] is None
    assert sum(found.drawn["quantized"]["counts"]) == codes.size


def test_biases_are_drawn_beside_their_grid():
    codes, grid = quantized(np.ones((4, 3), np.float32))
    found = weights(codes, grid, None, None)
    # In steps of 0.5: 3.2 is 3 of them, 0.1 is lost, and of 8 steps 7 is the most.
    step, bias = np.array([0.5, 0.5, 2.0]), np.array([1.6, -0.05, 40.0])
    own = with_bias(found, np.array([3, 0, 7]), step, 7, bias, 0.25)
    assert own.drawn["biases"]["channel"] == [0, 1, 2] and own.drawn["biases"]["limit"] == 7
    assert own.drawn["biases"]["codes"] == [3, 0, 7]
    np.testing.assert_allclose(own.drawn["biases"]["float"], [3.2, -0.1, 20])
    np.testing.assert_allclose(own.drawn["biases"]["error"], [-0.4, 0.2, -104])
    assert own.bias_error == pytest.approx(104) and (own.bias_bits, own.bias_full) == (4, 1)
    assert own.drawn["codes"] == found.drawn["codes"]
    # Of a file alone only the codes are known.
    alone = with_bias(found, np.array([3, 0, -6]), step, 7)
    assert {*alone.drawn["biases"]} == {"channel", "limit", "codes"}
    assert (alone.bias_error, alone.bias_sqnr, alone.bias_full) == (None, None, 0)


def test_the_worst_biases_are_drawn():
    codes, grid = quantized(np.ones((4, 500), np.float32))
    bias = np.arange(500.0)
    bias[321] += 0.4
    own = with_bias(weights(codes, grid, None, None), np.arange(500), np.ones(500), 1e9, bias, 1.0)
    drawn = own.drawn["biases"]
    assert len(drawn["channel"]) <= CHANNELS
    assert drawn["error"][drawn["channel"].index(321)] == pytest.approx(-0.4)
