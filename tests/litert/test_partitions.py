"""What XNNPACK runs of a file."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.litert import partitions as module
from kerasq.litert.partitions import partitions
from tests import networks

L = keras.layers


def content(*layers):
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    return kerasq.export_tflite(networks.quantized(model)).content


def test_an_operator_that_it_leaves_out_parts_a_file():
    first, last = L.Conv2D(4, 3, name="first"), L.Conv2D(2, 3, name="last")
    assert partitions(content(first)) == (1, ())
    # Averages of padded windows are left to LiteRT's own kernels.
    average = L.AveragePooling2D(3, strides=1, padding="same", name="average")
    assert partitions(content(first, average, last)) == (2, ("average",))
    assert partitions(content(first, L.AveragePooling2D(2), last)) == (1, ())


@pytest.mark.parametrize("count", [6, 9, 12, 23])
def test_many_tensors_are_joined_by_fives(count):
    image = keras.Input((4, 4, 3))
    parts = [L.Conv2D(2, 1)(image) for _ in range(count)]
    model = keras.Model(image, L.Conv2D(3, 1)(L.Concatenate()(parts)))
    x = networks.data(model, 8)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    assert partitions(lite.content) == (1, ())
    sizes = [len(op.inputs) for op in lite.ops if op.name == "CONCATENATION"]
    assert max(sizes) == 5 and sum(sizes) - len(sizes) == count - 1
    np.testing.assert_array_equal(networks.run(q, x), lite.predict(x))


def test_a_relu_between_others_is_theirs():
    first, last = L.Conv2D(4, 3, name="first"), L.Conv2D(2, 3, name="last")
    image = keras.Input((8, 8, 3))
    y = first(image)
    model = keras.Model(image, L.Add()([last(L.ReLU()(y)), L.Conv2D(2, 3)(y)]))
    lite = kerasq.export_tflite(networks.quantized(model))
    assert partitions(lite.content) == (1, ())
    assert "QUANTIZE" in [op.name for op in lite.ops]


def test_where_litert_does_not_tell_nothing_is_known(monkeypatch):
    interpreter = type("Interpreter", (), {"allocate_tensors": lambda self: None})
    monkeypatch.setattr(module, "Interpreter", lambda model_content: interpreter())
    assert partitions(b"") is None
