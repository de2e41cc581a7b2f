"""Which layers are rounded together."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.ptq.units import by_block, by_layer
from kerasq.wrappers import infer
from tests import networks

L = keras.layers


def names(units):
    return [[wrapper.name for wrapper in unit.wrappers] for unit in units]


def test_residual_blocks():
    q = networks.quantized(networks.mobile())
    blocks = [["stem"], ["expand", "depthwise", "project"], ["logits"]]
    assert names(by_block(q)) == blocks
    assert names(by_layer(q)) == [[name] for block in blocks for name in block]
    assert [unit.name for unit in by_block(q)] == ["stem", "project", "logits"]


def test_two_heads_are_no_block():
    x = keras.Input((6, 6, 2))
    y = L.Conv2D(3, 1, name="a")(x)
    one = L.Dense(2, name="one")(L.GlobalAveragePooling2D()(y))
    y = L.Conv2D(3, 1, name="b")(y)
    z = L.Add()([y, L.Conv2D(3, 1, name="c")(y)])
    q = networks.quantized(keras.Model(x, [one, L.Flatten()(L.Conv2D(1, 1, name="d")(z))]))
    assert sorted(map(sorted, names(by_block(q)))) == [["a"], ["b"], ["c"], ["d"], ["one"]]


@pytest.mark.parametrize("find", [by_layer, by_block])
def test_units_compute_what_the_model_does(find):
    model = networks.two_by_two()
    q = networks.quantized(model)
    x = [np.random.default_rng(0).normal(size=(3, n)).astype("f") for n in (4, 3)]
    known = {id(t): v for t, v in zip(q.inputs, x, strict=True)}

    def call(node, *args, **kwargs):
        y = infer(node, *args, **kwargs)
        known.update({id(t): y for t in node.outputs})
        return y

    kerasq.graph.run(q, x, call)
    for unit in find(q):
        found = unit.run([known[id(t)] for t in unit.inputs], infer)
        assert len(found) == len(unit.outputs) > 0
        for value, tensor in zip(found, unit.outputs, strict=True):
            np.testing.assert_array_equal(value, known[id(tensor)])
