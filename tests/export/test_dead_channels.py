"""Channels that change nothing go from files, and all codes stay as they are."""

import base64
import json
import zlib

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph, wrappers
from kerasq.litert import flatbuffer, metadata
from kerasq.litert.removed import KEPT
from tests import networks

L = keras.layers


def without(model, zeros, positive=()):
    """`model` with weights of 0: by layer, an index into its kernel. Biases are random.

    Those of layers with zeros are below 0, what a ReLU makes 0, but for some.
    """
    rng = np.random.default_rng(1)
    for layer in model.layers:
        values = layer.get_weights()
        if len(values) < 2:
            continue
        if layer.name in zeros:
            values[0][zeros[layer.name]] = 0.0
        values[1] = rng.normal(0.0, 0.3, values[1].shape)
        if layer.name in zeros and layer.name not in positive:
            values[1] = -np.abs(values[1])
        layer.set_weights(values)
    return model


def lacks(lite):
    """By layer with weights, which channels the file lacks."""
    made = {op.outputs[0] for op in lite.ops if f"{op.outputs[0]}/kernel" in op.inputs}
    channels = lite.removed_channels
    return {x: np.flatnonzero(channels[x] != KEPT).tolist() for x in channels if x in made}


def check_codes(q, lite, x):
    """The file computes what the simulation, of all channels, predicts."""
    (expected,) = graph.run(q, x, wrappers.infer)
    found = lite.predict(x)
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert len(np.unique(found)) > 3


def chain():
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, name="first")(image)
    x = L.DepthwiseConv2D(3, name="depthwise")(x)
    x = L.MaxPooling2D(2, name="pool")(x)
    x = L.Conv2D(6, 1, activation="relu", name="second")(x)
    x = L.Flatten(name="flat")(x)
    x = L.Dense(5, activation="tanh", name="squash")(x)
    return keras.Model(image, L.Dense(4, name="head")(x))


CHAIN = {"first": np.s_[..., [1, 4]], "second": np.s_[..., [0, 3, 5]], "squash": np.s_[:, 2]}


@pytest.mark.parametrize(
    "options",
    [
        {"scales": "power_of_two"},  # Half the sums lie at ties.
        {"scheme": "w4a4", "target": "litert-x86-64"},
        {"target": "tflm"},
        {"target": "tflm", "scheme": "w4a16"},
    ],
)
def test_chains_are_exact(options):
    networks.set_seed(19)  # Where that shows.
    model = without(chain(), CHAIN, positive=["first", "second"])
    q = networks.quantized(model, **options)
    lite = kerasq.export_tflite(q)
    check_codes(q, lite, networks.data(q, 64, seed=3))
    gone = {"first": [1, 4], "depthwise": [1, 4], "second": [0, 3, 5], "squash_linear": [2]}
    if options.get("scheme") == "w4a4":
        # Packed products of 5 inputs are rounded otherwise than those of 4.
        del gone["squash_linear"]
    assert lacks(lite) == gone
    shapes = {x.name: x.shape for x in lite.tensors}
    assert shapes["first/kernel"][0] == shapes["pool"][-1] == 6
    assert shapes["second/kernel"] == (3, 1, 1, 6) and shapes["flat"] == (1, 12)


@pytest.mark.parametrize("kind", [L.Conv1D, L.Dense])
def test_names_of_layers_may_be_those_of_a_reshape(kind):
    options = {"kernel_size": 1} if kind is L.Conv1D else {}
    layers = [kind(n, **options, name=f"layer_{n}") for n in (6, 4)]
    model = without(keras.Sequential([keras.Input((5, 4)), *layers]), {"layer_6": np.s_[..., 1:3]})
    # Packed products of an image's rows are convolutions there.
    q = networks.quantized(model, target="tflm", scheme="w4a8")
    lite = kerasq.export_tflite(q)
    assert np.flatnonzero(lite.removed_channels["layer_6"] != KEPT).tolist() == [1, 2]
    assert [x.shape for x in lite.tensors if x.name.endswith("/kernel")] == [(4, 1, 1, 4)] * 2
    check_codes(q, lite, networks.data(q, 64, seed=3))


def test_constants_become_bias_by_hand():
    model = keras.Sequential([keras.Input((2,)), L.Dense(3, name="dense"), L.Dense(1, name="head")])
    model.set_weights(
        [
            np.array([[1.0, 0.0, -1.0], [0.5, 0.0, 0.25]]),
            np.array([0.0, 0.75, 0.0]),
            np.array([[1.0], [-0.5], [0.25]]),
            np.array([0.1]),
        ]
    )
    for target in ("litert", "ethos-u"):
        q = networks.quantized(model, networks.data(model, 64), target=target)
        lite = kerasq.export_tflite(q, check=False)
        hidden, head = (q.get_layer(x) for x in ("dense", "head"))
        grid, weights = hidden.grid().numpy(), head.integer_weights()
        code = np.rint(0.75 / grid.scale) + grid.zero_point
        codes = np.asarray(weights.codes)[:, 0]
        bias = np.asarray(weights.bias)[0] + codes[1] * (code - grid.zero_point)
        assert lite.constant("head/bias") == [bias] and code != grid.zero_point
        np.testing.assert_array_equal(lite.constant("head/kernel"), [codes[[0, 2]]])
        np.testing.assert_array_equal(lite.removed_channels["dense"], [KEPT, code, KEPT])


def branches():
    image = keras.Input((8, 8, 2), name="image")
    x = L.Conv2D(6, 1, activation="relu", name="stem")(image)
    y = L.Conv2D(6, 3, padding="same", activation="relu", name="padded")(x)
    z = L.Conv2D(6, 1, activation="relu", name="other")(x)
    x = L.Concatenate(name="cat")([L.Add(name="add")([y, z]), y])
    x = L.ZeroPadding2D(1, name="zeros")(x)
    x = L.Conv2DTranspose(4, 3, strides=2, activation="relu", name="up")(x)
    gate = L.Dense(4, activation="sigmoid", name="gate")(L.GlobalAveragePooling2D(name="gap")(x))
    x = L.Multiply(name="gated")([x, L.Reshape((1, 1, 4), name="row")(gate)])
    x = L.UpSampling2D(2, interpolation="bilinear", name="large")(x)
    x = L.AveragePooling2D(3, padding="same", name="average")(x)
    x = L.Conv2D(3, 3, strides=4, name="last")(x)
    return keras.Model(image, L.Flatten(name="flat")(x))


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_what_padding_and_sums_need_stays(target):
    zeros = {
        "stem": np.s_[..., [0, 1]],  # Read by `padded`, with zeros around it.
        "padded": np.s_[..., [1, 2, 3]],
        "other": np.s_[..., [2, 3, 4]],  # Added to `padded`.
        "up": np.s_[:, :, [0, 3]],
        "last": np.s_[..., 1],  # An output.
    }
    model = without(branches(), zeros)
    stem, padded = model.get_layer("stem"), model.get_layer("padded")
    stem.bias.assign([-0.1, 0.2, 0.1, 0.1, 0.1, 0.1])
    # Channel 5 is not 0, but nothing reads it.
    for name in ("padded", "other"):
        kernel = model.get_layer(name).kernel.numpy()
        kernel[:, :, 5] = 0.0
        model.get_layer(name).kernel.assign(kernel)
    padded.bias.assign([0.1, -0.1, -0.1, 0.1, 0.1, 0.1])
    q = networks.quantized(model, target=target)
    lite = kerasq.export_tflite(q)
    check_codes(q, lite, networks.data(q, 8, seed=3))
    gone = lacks(lite)
    # Constant 0.2 in `stem` and 0.1 in `padded` would be summed up with zeros at the edges.
    assert gone["stem"] == [0, 5] and gone["padded"] == gone["other"] == [2]
    assert gone["up"] == [0, 3] and gone["gate_linear"] == [0, 3] and "last" not in gone
    assert {x.name: x.shape for x in lite.tensors}["cat"][-1] == 10


def test_what_is_no_longer_read_goes_as_well():
    sizes = (8, 7, 6, 5)
    layers = [L.Dense(n, "relu", name=f"dense_{n}") for n in sizes]
    zeros = {"dense_6": np.s_[:, 2], "dense_7": np.s_[[0, 2], 3]}
    model = without(keras.Sequential([keras.Input((4,)), *layers]), zeros, positive=["dense_6"])
    # Only channel 2 of `dense_6` reads channel 3 of `dense_7`, and that alone 0 and 2 of `dense_8`.
    for name, (inputs, output) in {"dense_6": (3, 2), "dense_7": ([0, 2], 3)}.items():
        kernel = model.get_layer(name).kernel.numpy()
        others = np.arange(kernel.shape[1]) != output
        kernel[np.ix_(np.atleast_1d(inputs), others)] = 0.0
        if name == "dense_7":
            kernel[[0, 2], output] = 0.5
        model.get_layer(name).kernel.assign(kernel)
    q = networks.quantized(model)
    lite = kerasq.export_tflite(q)
    assert lacks(lite) == {"dense_8": [0, 2], "dense_7": [3], "dense_6": [2]}
    check_codes(q, lite, networks.data(q, 64, seed=3))


def test_one_channel_stays():
    model = keras.Sequential([keras.Input((4,)), *(L.Dense(n, name=f"d{n}") for n in (6, 5))])
    q = networks.quantized(without(model, {"d6": np.s_[:]}))
    lite = kerasq.export_tflite(q)
    assert lacks(lite) == {"d6": [1, 2, 3, 4, 5]}
    (expected,) = graph.run(q, x := networks.data(q, 2), wrappers.infer)
    np.testing.assert_array_equal(lite.predict(x), np.asarray(expected))


def test_packed_products_read_an_even_number_of_codes():
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(8, "relu", name="hidden"), L.Dense(3, name="head")]
    )
    q = networks.quantized(without(model, {"hidden": np.s_[:, [1, 4, 6]]}), scheme="w4a8")
    lite = kerasq.export_tflite(q)
    assert {x.name: x.type for x in lite.tensors}["head/kernel"] == "int4"
    assert lacks(lite) == {"hidden": [4, 6]}
    check_codes(q, lite, networks.data(q, 64, seed=3))


def test_layers_that_are_called_twice_stay():
    x = keras.Input((4,))
    dense = L.Dense(4, "relu", name="dense")
    q = networks.quantized(without(keras.Model(x, dense(dense(x))), {"dense": np.s_[:, 1]}))
    assert not kerasq.export_tflite(q).removed_channels


@pytest.fixture(scope="module")
def exported():
    q = networks.quantized(without(chain(), CHAIN, positive=["first"]))
    return q, kerasq.export_tflite(q), networks.data(q, 8, seed=3)


def test_files_say_what_they_lack(exported, tmp_path, capsys):
    q, lite, _ = exported
    gone = "first (2 of 8), depthwise (2 of 8), second (3 of 6), squash_linear (1 of 5)"
    lite.save(tmp_path / "model.tflite")
    again = kerasq.TFLiteModel(tmp_path / "model.tflite")
    assert f"\nChannels removed, which change nothing: {gone}." in str(again)
    whole = kerasq.export_tflite(q, remove_dead_channels=False, check=False)
    assert "removed" not in str(whole) + capsys.readouterr().out
    assert not whole.removed_channels and len(whole.content) > len(lite.content)


def test_layers_are_compared_without_what_files_lack(exported):
    q, lite, x = exported
    rows = {row.name: row for row in kerasq.compare(q, lite, x=x).layers}
    assert {row.max_lsb for row in rows.values()} == {0}
    # 8 samples, of images of 6 x 6, with 6 of 8 channels.
    assert rows["first"].values == 8 * 36 * 6 and rows["flat"].values == 8 * 4 * 3


def test_reports_have_layers_that_files_lack_channels_of(exported, tmp_path):
    pytest.importorskip("bokeh")
    q, lite, x = exported
    kerasq.report(q, lite, x, tmp_path / "report.html")
    found = json.loads((tmp_path / "report.json").read_text())
    rows = {row.name for row in kerasq.compare(q, lite, x=x).layers}
    assert {row["name"] for row in found["layers"]} >= rows


def test_encodings_want_multipliers_of_all_channels(exported, tmp_path):
    q, lite, _ = exported
    with pytest.raises(ValueError, match=r"all channels. Received: .*'first'.*_channels=False"):
        kerasq.save_encodings(q, tmp_path / "e.json", multipliers=kerasq.multipliers(lite))


def noted(content, entries):
    """The file with another note of what it lacks."""
    model = flatbuffer.read(content)
    model.metadata = [x for x in model.metadata if x.name != b"kerasq.removed"]
    packed = base64.b85encode(zlib.compress(json.dumps(entries).encode())).decode()
    metadata.put(model, "kerasq.removed", packed)
    return flatbuffer.write(model)


@pytest.mark.parametrize("entries", [[], {"first": [None, 3]}, {"first": 2}])
def test_damaged_notes(exported, entries):
    content = noted(exported[1].content, entries)
    with pytest.raises(
        ValueError, match=r"'kerasq.removed' must hold the channels.*export it again"
    ):
        kerasq.TFLiteModel(content)


def test_other_tools_may_take_tensors_away(exported):
    # Vela does, and keeps the note.
    content = noted(exported[1].content, {"other": [None, 3]})
    assert kerasq.TFLiteModel(content).removed_channels == {}


def test_many_layers_are_not_all_named():
    layers = [L.Dense(4, "relu", name=f"d{i}") for i in range(12)]
    model = keras.Sequential([keras.Input((4,)), *layers, L.Dense(2, name="head")])
    dead = {layer.name: np.s_[:, 1] for layer in layers}
    lite = kerasq.export_tflite(networks.quantized(without(model, dead)))
    (remark,) = [x for x in lite.remarks() if "removed" in x]
    assert len(lite.removed_channels) == 12 and "d9 (" in remark and "d10 (" not in remark
    assert remark.endswith("and of 2 more layers.")
