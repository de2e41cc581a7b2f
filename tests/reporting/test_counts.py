"""Histograms, beside NumPy's."""

import numpy as np

from kerasq.grid import Grid
from kerasq.reporting.counts import BINS, CodeCounts, ValueCounts, some


def test_values_are_counted_as_numpy_does():
    x = np.random.default_rng(0).normal(0, 2, 20_000).astype(np.float32)
    counts = ValueCounts(-3.0, 5.0)
    for part in np.split(x, 4):
        counts.add(part)
    expected, edges = np.histogram(np.clip(x, -3, 5), BINS, (-3, 5))
    np.testing.assert_array_equal(counts.counts, expected)
    assert (counts.figures()["low"], counts.figures()["high"]) == (edges[0], edges[-1])


def test_bins_are_around_the_values_and_the_grid():
    grid = Grid.from_range(-1.0, 4.0)
    counts = ValueCounts.around(np.array([-2.0, 1.0]), grid)
    assert (counts.low, counts.high) == (-2.0, float(grid.high))
    counts.add(np.array([-1e30, 1e30]))  # Beyond what an integer holds.
    assert counts.counts[0] == counts.counts[-1] == 1
    assert ValueCounts.around(np.zeros(3), None).high == 1.0  # Not empty.


def test_codes_are_counted_as_numpy_does():
    codes = np.random.default_rng(0).integers(-30, 90, 5000).astype(np.int8)
    counts = CodeCounts(Grid.from_range(-1.0, 1.0))
    for part in np.split(codes, 5):
        counts.add(part)
    values, expected = np.unique(codes, return_counts=True)
    found = counts.figures()
    assert (found["first"], found["step"], found["legal"]) == (values[0], 1, 256)
    assert found["counts"] == expected.tolist() and found["used"] == len(values)
    assert counts.ends == (values[0], values[-1])


def test_codes_of_16_bits_share_bins_but_each_is_known():
    codes = np.array([-32768, -256, -255, 0, 1, 1, 32767], np.int16)
    counts = CodeCounts(Grid.from_range(-1.0, 1.0, bits=16))
    counts.add(codes)
    assert counts.used == 6 and counts.ends == (-32768, 32767)
    found = counts.figures()
    expected, _ = np.histogram(codes, 256, (-32768, 32768))
    assert found["counts"] == expected.tolist() and found["step"] == 256


def test_only_some_values_of_a_large_batch_are_counted():
    assert some(np.zeros((10, 3))).shape == (10, 3)
    assert some(np.arange(10)[:, None] * np.ones(2**15))[:, 0].tolist() == [0, 3, 6, 9]
    assert some(np.zeros((10, 2**19))).shape == (1, 2**19)
