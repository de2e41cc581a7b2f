"""Functions that are traced once: one operator a call, the sizes and gradients of arguments."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.support.shared import shared


@pytest.fixture
def traces():
    """A shared function, and what it was traced for."""
    found = []

    @shared
    def scaled(x, grid, shift=0.0, *, sign=1):
        found.append((x.shape.rank, grid.bits, shift, sign))
        return sign * x * grid.scale + shift, tf.reduce_max(x)

    return scaled, found


def _grid(scale, bits=8):
    return Grid(scale=tf.constant(scale), zero_point=tf.constant(0.0), bits=bits)


def test_sizes_and_values_share_a_trace_and_constants_do_not(traces):
    scaled, found = traces
    for size in (2, 3, 5):
        y, largest = scaled(tf.ones((size, 4)), _grid(float(size)))
        np.testing.assert_array_equal(y, np.full((size, 4), float(size)))
        assert float(largest) == 1.0
    assert found == [(2, 8, 0.0, 1)]
    scaled(tf.ones((2, 4)), _grid(1.0, bits=16))
    scaled(tf.ones(3), _grid(1.0))
    scaled(tf.ones((2, 4)), _grid(1.0), 0.5)
    y, _ = scaled(tf.ones((2, 4)), _grid(1.0), sign=-1)
    assert float(y[0, 0]) == -1.0
    assert found[1:] == [(2, 16, 0.0, 1), (1, 8, 0.0, 1), (2, 8, 0.5, 1), (2, 8, 0.0, -1)]


def test_a_call_is_one_operator_with_the_shapes_of_its_tensors(traces):
    scaled, _ = traces
    per_channel = dataclasses.replace(_grid(1.0), scale=tf.ones(4))

    @tf.function(input_signature=[tf.TensorSpec((None, 7, 4))], autograph=False)
    def model(x):
        y, largest = scaled(x, per_channel)
        assert y.shape.as_list() == [None, 7, 4] and largest.shape.as_list() == []
        return y

    kinds = [x.type for x in model.get_concrete_function().graph.get_operations()]
    assert kinds.count("PartitionedCall") == 1 and "Mul" not in kinds


def test_variables_are_read_and_get_gradients(traces):
    scaled, found = traces
    variables = [tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])]
    for variable in variables:
        with tf.GradientTape() as tape:
            y, _ = scaled(variable, _grid(5.0))
        np.testing.assert_array_equal(tape.gradient(y, variable), [5.0, 5.0])
    assert len(found) == 1
