"""What kerasq notes in a file, whole and damaged."""

import json

import numpy as np
import pytest

import kerasq
from kerasq.litert import flatbuffer, metadata
from kerasq.litert.preprocessing import Preprocessing
from tests import networks


@pytest.fixture(scope="module")
def content():
    return kerasq.export_tflite(networks.quantized(networks.mlp())).content


def noted(content, name, value):
    """The file with an entry of these bytes in the place of another one."""
    model = flatbuffer.read(content)
    model.metadata = [x for x in model.metadata if x.name.decode() != name]
    metadata.put(model, name, None)
    model.buffers[model.metadata[-1].buffer].data = np.frombuffer(value, np.uint8)
    return flatbuffer.write(model)


def test_what_was_put_is_found(content):
    model = flatbuffer.read(content)
    assert metadata.find_made(model).target == "litert"
    assert metadata.find(model, "none") is None
    metadata.put(model, "mine", [1, {"a": 2.5}])
    assert metadata.find(flatbuffer.read(flatbuffer.write(model)), "mine") == [1, {"a": 2.5}]


def test_a_file_says_what_has_made_it():
    q = networks.quantized(networks.mlp())
    assert kerasq.export_tflite(q).made.training == {}
    q.compile("sgd", "mse")
    x = networks.data(q, 8)
    q.fit(x, np.zeros((8, 3)), batch_size=4, epochs=3, verbose=0)
    lite = kerasq.export_tflite(q)
    assert lite.made.kerasq == kerasq.__version__
    assert lite.made.schemes == {"w8a8": 4}  # Three with weights and a softmax.
    assert lite.made.training == {"optimizer": "SGD", "steps": 6}
    line = f"Written by kerasq {kerasq.__version__}; layers: 4 w8a8; trained by SGD, 6"
    assert line in str(lite)


def test_a_file_of_before_says_less(content):
    value = json.dumps(MADE).encode()
    lite = kerasq.TFLiteModel(noted(content, "kerasq.made", value))
    assert (lite.made.target, lite.made.kerasq) == ("litert", "") and "Written by" not in str(lite)


MADE = {"target": "litert", "runtime": "litert", "version": "2", "machines": [], "away": False}


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"5",
        json.dumps({**MADE, "runtime": None}).encode(),
        json.dumps({**MADE, "more": 1}).encode(),
        json.dumps({"target": "litert"}).encode(),
    ],
    ids=["cut", "text", "deep", "null", "number", "type", "more", "less"],
)
def test_damaged_notes_of_the_target(content, value):
    with pytest.raises(ValueError, match=r"Metadata 'kerasq.made' must .*export it again"):
        kerasq.TFLiteModel(noted(content, "kerasq.made", value))


GAIN = {"gain": [1.0], "shift": [0.0]}


@pytest.mark.parametrize(
    "value",
    [5, "x", [], [1], [GAIN, GAIN], [{"gain": [1.0]}], [{**GAIN, "more": 1}]]
    + [[{**GAIN, "gain": x}] for x in ([1.0, 2.0], ["a"], [float("nan")])],
    ids=str,
)
def test_damaged_preprocessing(content, value):
    with pytest.raises(ValueError, match=r"Metadata 'kerasq.preprocessing' must hold gain and"):
        kerasq.TFLiteModel(noted(content, "kerasq.preprocessing", json.dumps(value).encode()))


def test_preprocessing_of_one_number(content):
    value = json.dumps([{"gain": [2.0], "shift": [1.0]}]).encode()
    (tensor,) = kerasq.TFLiteModel(noted(content, "kerasq.preprocessing", value)).inputs
    assert isinstance(tensor.preprocessing, Preprocessing)


def test_a_buffer_that_is_not_there(content):
    model = flatbuffer.read(content)
    model.metadata[0].buffer = 999
    with pytest.raises(ValueError, match="export it again"):
        kerasq.TFLiteModel(flatbuffer.write(model))


def test_a_file_that_does_not_say():
    lite = kerasq.export_float_tflite(networks.mlp())
    assert "It does not say what it was made for." in str(lite)
