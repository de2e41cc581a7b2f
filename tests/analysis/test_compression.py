"""What weights compress to: patterns by hand, codes, and bytes."""

import zlib

import keras
import numpy as np
import pytest

import kerasq
from kerasq.analysis.compression import pattern_of
from tests import networks

L = keras.layers


def test_patterns_by_hand():
    rng = np.random.default_rng(0)
    shape = (3, 3, 16, 32)
    scattered = rng.random(shape) < 0.6
    assert pattern_of(scattered) == "unstructured"
    assert pattern_of(np.zeros(shape, bool)) == ""
    assert pattern_of(np.ones(shape, bool)) == "channels"
    assert pattern_of(np.broadcast_to(np.arange(32) % 3 == 0, shape)) == "channels"
    assert pattern_of(np.broadcast_to((np.arange(16) % 3 == 0)[:, None], shape)) == "inputs"
    ranks = rng.random((3, 3, 4, 4, 32)).argsort(axis=-2)
    assert pattern_of((ranks < 2).reshape(shape)) == "2:4"
    assert pattern_of((ranks < 3).reshape(shape)) == "1:4"
    assert pattern_of((ranks < 1).reshape(shape)) == "unstructured"
    # Zeros beyond the pattern change nothing; one weight too many does.
    two = (ranks < 2).reshape(shape)
    assert pattern_of(two | scattered) == "2:4"
    two[0, 0, :3, 0] = False
    assert pattern_of(two) == "unstructured"
    blocks = rng.random((3, 3, 4, 8)) < 0.5
    assert pattern_of(blocks.repeat(4, axis=2).repeat(4, axis=3)) == "blocks 4x4"
    assert pattern_of((rng.random((64, 8)) < 0.5).repeat(1, axis=0).repeat(4, axis=1)) == (
        "blocks 1x4"
    )
    assert pattern_of(np.array([[True, False], [False, False]])) == "unstructured"
    assert pattern_of(scattered[0], has_inputs=False) == "unstructured"


def test_rows_and_table():
    model = networks.mobile()
    kernel = model.get_layer("project").kernel
    kernel.assign(kernel.numpy() * (np.arange(16) % 4 < 2)[:, None])
    q = networks.quantized(model)
    found = kerasq.compression(q)
    rows = {row.name: row for row in found.layers}
    assert [*rows] == ["stem", "expand", "depthwise", "project", "logits"]
    codes = {name: q.get_layer(name).integer_weights().codes.numpy() for name in rows}
    project = rows["project"]
    assert (project.weights, project.zeros) == (128, np.mean(codes["project"] == 0))
    assert project.pattern == "inputs" and rows["stem"].pattern == ""
    assert {row.dead for row in found.layers} == {0}
    expand = q.get_layer("expand")
    expand.layer.kernel.assign(expand.layer.kernel * (np.arange(16) % 8 > 0))
    assert {row.name: row.dead for row in kerasq.compression(q).layers}["expand"] == 2
    assert project.codes == len(np.unique(codes["project"]))
    assert project.channel_codes == max(len(np.unique(c)) for c in codes["project"][0, 0].T)
    # As they lie in the file: outputs first, but last in a depthwise kernel.
    lite = kerasq.export_tflite(q, remove_dead_channels=False)
    for name in ("project", "depthwise"):
        content = lite.constant(f"{name}/kernel").tobytes()
        assert rows[name].compressed == len(zlib.compress(content, 9))
    zeros = np.mean(np.concatenate([c.ravel() for c in codes.values()]) == 0)
    assert found.zeros == pytest.approx(zeros)
    text = str(found)
    assert "inputs" in text and f"{found.compressed:,}" in text.splitlines()[-1]


def test_bad_models():
    with pytest.raises(ValueError, match="`model` must be a quantized model"):
        kerasq.compression(networks.mlp())
    q = kerasq.quantize_model(keras.Sequential([keras.Input((4,)), L.ReLU()]))
    with pytest.raises(ValueError, match="must have layers with weights that are quantized"):
        kerasq.compression(q)
