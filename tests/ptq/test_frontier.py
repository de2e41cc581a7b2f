"""A network that is run part by part: the same values, each call computed about once."""

import collections

import numpy as np
import pytest

from kerasq.ptq import frontier
from kerasq.ptq.data import Data
from kerasq.ptq.frontier import Frontier
from kerasq.ptq.units import by_block, by_layer
from kerasq.wrappers import infer
from tests import networks


@pytest.mark.parametrize("find", [by_layer, by_block])
@pytest.mark.parametrize("make", [networks.mobile, networks.residual])
def test_values_are_those_of_the_whole_network(make, find):
    model = make()
    q, x = networks.quantized(model), networks.data(model)[:8]
    data = Data(q, [x[:5], x[5:]], None)
    ahead, still = Frontier(q, data, infer), Frontier(q, data, infer)
    for unit in find(q):
        ahead.advance(unit.before)
        wanted = [*unit.inputs, *unit.outputs]
        for near, far in zip(ahead, still, strict=True):
            pairs = zip(ahead.values(near, wanted), still.values(far, wanted), strict=True)
            for found, expected in pairs:
                assert len(found) in (3, 5)
                np.testing.assert_array_equal(found, expected)


def test_inputs_that_are_read_late():
    q = networks.quantized(networks.two_by_two())
    x = [np.random.default_rng(0).normal(size=(3, n)).astype("f") for n in (4, 3)]
    data = Data(q, x, None)
    walked = Frontier(q, data, infer)
    for unit in by_layer(q):
        walked.advance(unit.before)
        (batch,) = walked
        found = walked.values(batch, unit.outputs)
        (batch,) = Frontier(q, data, infer)
        expected = Frontier(q, data, infer).values(batch, unit.outputs)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fits", [True, False])
def test_what_is_behind_is_not_computed_again(fits, monkeypatch):
    monkeypatch.setattr(frontier, "MEMORY", 2**29 if fits else 1)
    model = networks.mobile()
    q, x = networks.quantized(model), networks.data(model)[:8]
    computed = collections.Counter()

    def call(node, *args, **kwargs):
        computed[node.layer.name] += len(args[0]) == len(x)
        return infer(node, *args, **kwargs)

    walked = Frontier(q, Data(q, x, None), call)
    units = by_layer(q)
    for unit in units:
        walked.advance(unit.before)
        for batch in walked:
            walked.values(batch, unit.outputs)
    # Once for what it returns, and once to go on.
    assert (max(computed.values()) <= 2) == fits
    assert fits or computed[units[0].name] == len(units)
