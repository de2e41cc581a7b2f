"""What XNNPACK runs of a file."""

import keras

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
    # Averages are left to LiteRT's own kernels.
    assert partitions(content(first, L.AveragePooling2D(2, name="average"), last)) == (
        2,
        ("average",),
    )


def test_where_litert_does_not_tell_nothing_is_known(monkeypatch):
    interpreter = type("Interpreter", (), {"allocate_tensors": lambda self: None})
    monkeypatch.setattr(module, "Interpreter", lambda model_content: interpreter())
    assert partitions(b"") is None
