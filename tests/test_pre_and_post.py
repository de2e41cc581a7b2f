"""What users put in front of a network and behind it: spectrograms, boxes, the best."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L, ops = keras.layers, keras.ops
CLASSES, ANCHORS = 3, 2


def boxes_of(x, size):
    """Corners, and scores of classes, of one map of a head as YOLO has it."""
    y = L.Conv2D(ANCHORS * (5 + CLASSES), 1)(x)
    y = ops.reshape(y, (-1, size * size * ANCHORS, 5 + CLASSES))
    places = np.stack(np.meshgrid(*[np.arange(size)] * 2), -1).reshape(-1, 1, 2)
    corner = np.repeat(places, ANCHORS, 1).reshape(1, -1, 2).astype("float32")
    anchors = np.tile(np.float32([[0.2, 0.3], [0.5, 0.4]]), (size * size, 1))[None]
    centre = (ops.sigmoid(y[..., :2]) + corner) / size
    half = ops.exp(y[..., 2:4]) * anchors / 2.0
    score = ops.sigmoid(y[..., 4:5]) * ops.sigmoid(y[..., 5:])
    return ops.concatenate([centre - half, centre + half], -1), score


def detector():
    networks.set_seed(0)
    x = image = keras.Input((16, 16, 3), name="image")
    found = []
    for size in (8, 4):
        x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
        found.append(boxes_of(x, size))
    boxes, scores = (ops.concatenate(parts, 1) for parts in zip(*found, strict=True))
    best = ops.max(scores, -1)
    outputs = {"boxes": boxes, "best": best, "kind": ops.argmax(scores, -1), "kept": best > 0.3}
    return keras.Model(image, outputs)


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_a_detection_head_is_integer(target):
    model = detector()
    x = networks.data(model, 16, scale=1.0)
    q = networks.quantized(model, x, target=target)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    want, got, floats = networks.run(q, x), lite.predict(x), networks.run(model, x)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert np.abs(want["boxes"] - floats["boxes"]).max() < 0.02
    assert np.abs(want["best"] - floats["best"]).max() < 0.01
    assert (want["kept"] == floats["kept"]).mean() > 0.97


def the_best(**options):
    keras.backend.clear_session()  # Operations have names by number.
    networks.set_seed(0)
    x = keras.Input((12,), name="x")
    values, places = ops.top_k(L.Dense(10, name="scores")(x), 3, **options)
    rows = L.Embedding(10, 4)(places)
    return keras.Model(x, [L.Dense(2)(values), values, places, L.Dense(2)(rows)])


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w2a2"])
def test_the_best_keep_the_grid_and_places_are_labels(scheme):
    model = the_best()
    x = networks.data(model, 256)
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == [] and [op.name for op in lite.ops].count("TOPK_V2") == 1
    assert lite.outputs[2].dtype == np.int32
    assert lite.outputs[1].grid.equals(q.get_layer("scores").grid().numpy())
    want = networks.run(q, x)
    # Of equal ones, of which few codes have many, the first ones.
    assert scheme != "w2a2" or (want[1][:, 0] == want[1][:, 1]).mean() > 0.02
    for a, b in zip(want, lite.predict(x).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    report = kerasq.compare(q, lite, x=x[:16])
    assert {x.name for x in report.layers} >= {"top_k", "top_k:1"} and report.exact == 1.0


def test_the_best_in_any_order_stay_float(capsys):
    kerasq.quantize_model(the_best(sorted=False))
    assert "'top_k' (keras.ops, TopK)" in capsys.readouterr().out


def test_a_target_without_the_operator_is_told():
    q = networks.quantized(the_best(), target="tflm")
    with pytest.raises(ValueError, match=r"target 'tflm' has. Received: layer 'top_k', .* TOPK_V2"):
        kerasq.export_tflite(q)


def test_a_spectrogram_is_a_named_island_of_floats(capsys):
    networks.set_seed(0)
    sound = keras.Input((512,), name="sound")
    options = {"num_mel_bins": 8, "sampling_rate": 8000, "min_freq": 40.0, "max_freq": 3800.0}
    mel = L.MelSpectrogram(fft_length=64, sequence_stride=32, name="mel", **options)
    x = L.Reshape((8, 17, 1), name="image")(mel(sound))
    x = L.Conv2D(4, 3, activation="relu", name="conv")(x)
    model = keras.Model(sound, L.Dense(3, activation="softmax")(L.Flatten()(x)))
    data = networks.data(model, 16)
    q = networks.quantized(model, data)
    assert "'mel' (MelSpectrogram: no rule" in capsys.readouterr().out
    lite = kerasq.export_tflite(q, check=False, input_dtype="float32")
    floats = [op.name for op in lite.float_ops]
    assert {op.outputs[0].split("/")[0] for op in lite.float_ops} <= {"mel", "image"}
    # What is behind it is integer, and it is there once.
    behind = [op.name for op in lite.ops if op not in lite.float_ops][-5:]
    assert behind == ["QUANTIZE", "CONV_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX"]
    assert floats.count("RFFT2D") == 1
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))
    assert networks.sqnr(model, q, data) > 30
