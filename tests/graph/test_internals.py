"""What layers keep: once, until it is forgotten."""

import itertools

import keras
import pytest

import kerasq
from kerasq import graph
from tests import networks


def test_what_is_remembered():
    owner, count = object(), itertools.count(1)

    def once():
        return graph.once(owner, "number", lambda: next(count))

    assert [once(), once()] == [1, 2]
    with graph.remembering():
        assert [once(), once()] == [3, 3]
        with graph.remembering():
            assert once() == 3
        graph.forget(owner, "another")
        assert once() == 3
        graph.forget(owner)
        assert once() == 4
    assert once() == 5
    memory = {}
    for _ in range(2):
        with pytest.raises(KeyError), graph.remembering(memory):
            assert once() == 6
            raise KeyError
    assert once() == 7


def test_a_range_that_changes_has_another_grid():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    layer = networks.quantized(model, networks.data(model, 8)).get_layer("dense")
    with graph.remembering():
        before = layer.grid()
        assert layer.grid() is before
        layer.output_quantizer.assign_range(-1.0, 127.0)
        assert float(layer.grid().scale) == pytest.approx(128.0 / 255)
        weights = layer.integer_weights()
        assert layer.integer_weights() is weights
    assert layer.integer_weights() is not weights


def test_all_batches_of_a_comparison_have_the_same_weights(monkeypatch):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    x = networks.data(model, 3 * 64)
    q = networks.quantized(model, x)
    lite, computed = kerasq.export_tflite(q), []
    kind = type(q.get_layer("dense"))
    weights = kind._integer_weights
    monkeypatch.setattr(
        kind, "_integer_weights", lambda self: computed.append(self.name) or weights(self)
    )
    assert kerasq.compare(q, lite, x=x).samples == len(x)
    assert computed == ["dense"]
