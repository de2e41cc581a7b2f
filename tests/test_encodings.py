"""All grids of a model as JSON, and back."""

import json

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers


def grids(model):
    return {
        layer.name: layer.grid().numpy()
        for layer in model.layers
        if isinstance(layer, kerasq.wrappers.QuantizeWrapper)
    }


def assert_same_grids(a, b):
    for name, grid in grids(a).items():
        other = grids(b)[name]
        np.testing.assert_allclose(other.scale, grid.scale, rtol=1e-6)
        np.testing.assert_array_equal(other.zero_point, grid.zero_point)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8", "w4a4"])
@pytest.mark.parametrize(("name", "batch_norm"), [("residual", "keep"), ("mobile", "fold")])
def test_another_copy_gets_the_same_grids(name, batch_norm, scheme, tmp_path):
    model = getattr(networks, name)()
    x = networks.data(model, 32)
    q = networks.quantized(model, x, scheme=scheme, batch_norm=batch_norm)
    found = kerasq.save_encodings(q, tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text()) == found
    other = networks.quantized(model, x * 3.0, scheme=scheme, batch_norm=batch_norm)
    with pytest.raises(AssertionError):
        assert_same_grids(q, other)
    kerasq.load_encodings(other, tmp_path / "e.json")
    assert_same_grids(q, other)
    # One step where a scale's last bit differs.
    assert networks.sqnr(q, other, x) > 35.0
    fresh = kerasq.quantize_model(model, scheme=scheme, batch_norm=batch_norm)
    kerasq.load_encodings(fresh, tmp_path / "e.json")
    kerasq.export_tflite(fresh)


def test_the_cell_state_of_a_whole_lstm(tmp_path):
    """That counts beyond what is assumed where no data has told."""
    layer = L.LSTM(1, name="lstm")
    model = keras.Sequential([keras.Input((40, 1), name="x"), layer])
    weights = [[[0.0, 0.0, 4.0, 0.0]], np.zeros((1, 4)), [6.0, 6.0, 0.0, 6.0]]
    layer.set_weights([np.float32(x) for x in weights])
    x = np.ones((8, 40, 1), "float32") * np.linspace(0.5, 1.0, 8, dtype="f")[:, None, None]
    q = networks.quantized(model, x, target="tflm")
    found = kerasq.save_encodings(q, tmp_path / "e.json")
    cell = next(x for x in found["activation_encodings"] if x["name"].endswith("/cell"))
    assert (cell["bw"], cell["scale"], cell["offset"]) == (16, [2.0**-9], [-(2**15)])  # 64 / 2^15
    other = kerasq.quantize_model(model, target="tflm")
    kerasq.load_encodings(other, tmp_path / "e.json")
    np.testing.assert_array_equal(networks.run(other, x), networks.run(q, x))
    for scale in (0.001, 1.0):
        cell["scale"] = [scale]
        (tmp_path / "bad.json").write_text(json.dumps(found))
        with pytest.raises(ValueError, match="/cell' must have a power of two from"):
            kerasq.load_encodings(other, tmp_path / "bad.json")
    found["activation_encodings"].remove(cell)
    (tmp_path / "bad.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"a file without \['lstm.*/cell'\]"):
        kerasq.load_encodings(other, tmp_path / "bad.json")


def test_multipliers_go_along(tmp_path):
    model = networks.mlp()
    q = networks.quantized(model)
    multipliers = kerasq.multipliers(kerasq.export_tflite(q), bits=8)
    found = kerasq.save_encodings(q, tmp_path / "e.json", multipliers=multipliers)
    assert json.loads((tmp_path / "e.json").read_text()) == found
    own = found["requantization"]
    assert own["bits"] == 8 and own["formula"] == "real = multiplier * 2^(shift - bits)"
    operators = {x["name"]: x for x in own["operators"]}
    assert [*operators] == ["hidden", "squash_linear", "head"] and operators["head"]["op"] == (
        "FULLY_CONNECTED"
    )
    head = operators["head"]
    for real, m, shift in zip(head["real"], head["multiplier"], head["shift"], strict=True):
        assert 128 <= m < 256 and abs(m * 2.0 ** (shift - 8) / real - 1.0) <= 2.0**-8
    kerasq.load_encodings(q, tmp_path / "e.json")  # Which does not read them.
    other = networks.quantized(networks.sequential())
    with pytest.raises(ValueError, match=r"must be those of an export of `model` 'sequential'"):
        kerasq.save_encodings(other, tmp_path / "o.json", multipliers=multipliers)


def test_ranges_of_weights_that_learn_are_set(tmp_path):
    model = networks.mlp()
    q = networks.quantized(model, scheme="w4a8")
    for layer in q.layers:
        if hasattr(layer, "weight_quantizer"):
            layer.weight_quantizer.kernel_range.assign(layer.weight_quantizer.kernel_range * 0.7)
    kerasq.save_encodings(q, tmp_path / "e.json")
    other = networks.quantized(model, scheme="w4a8")
    x = networks.data(model, 32)
    assert networks.sqnr(q, other, x) < 30.0
    kerasq.load_encodings(other, tmp_path / "e.json")
    assert networks.sqnr(q, other, x) > 35.0


def test_the_layout_is_aimets(tmp_path):
    """By hand: [-1, 3] at 8 bits, and a kernel of two channels."""
    model = keras.Sequential([keras.Input((2,), name="x"), L.Dense(2, name="d")])
    model.set_weights([np.float32([[1.0, 0.5], [-2.0, 0.25]]), np.zeros(2, "f")])
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, np.float32([[-1.0, 3.0]]), method="minmax")
    found = kerasq.save_encodings(q, tmp_path / "e.json")
    first = found["activation_encodings"][0]
    assert found["version"] == "1.0.0"
    assert (first["enc_type"], first["dtype"], first["bw"], first["is_sym"]) == (
        "PER_TENSOR",
        "INT",
        8,
        False,
    )
    np.testing.assert_allclose(first["scale"], [4.0 / 255], rtol=1e-6)
    assert first["offset"] == [-64]  # 1 / (4 / 255) = 63.75
    (kernel,) = found["param_encodings"]
    assert kernel["name"] == "d/kernel" and kernel["enc_type"] == "PER_CHANNEL"
    np.testing.assert_allclose(kernel["scale"], [2.0 / 127, 0.5 / 127], rtol=1e-6)
    assert kernel["offset"] == [-128, -128] and kernel["is_sym"] is True


CHANGES = {
    "must be JSON. Received: Expecting": lambda e: b"{",
    "must be JSON. Received: 'utf-8' codec": lambda e: b"{\xff}",
    "must be JSON. Received: maximum recursion": lambda e: b"[" * 100_000,
    "must have the version '1.0.0'. Received: '0.6.1'": lambda e: e | {"version": "0.6.1"},
    "'activation_encodings' must be a list of objects": lambda e: e | {"activation_encodings": {}},
    r"must name tensors of the model. Received: \['other'\]": lambda e: _first(e, name="other"),
    r"without \['d', 'x_quantize'\]": lambda e: e | {"activation_encodings": []},
    "'x_quantize' must have bw=8, .* Received: 4": lambda e: _first(e, bw=4),
    "'x_quantize' must have is_sym=False": lambda e: _first(e, is_sym=True),
    "1 finite numbers as 'scale'. Received: 'a'": lambda e: _first(e, scale="a"),
    r"1 finite numbers as 'scale'. Received: \[nan\]": lambda e: _first(e, scale=[float("nan")]),
    r"scales above 0. Received: \[0.0\]": lambda e: _first(e, scale=[0.0]),
    "1 finite numbers as 'scale'. Received: .10000": lambda e: _first(e, scale=[10**400]),
    r"a range that the layer can have.*scale=1e-33": lambda e: _first(e, scale=[1e-33]),
    r"must name each tensor once. Received: \['d'\]": lambda e: (
        e | {"activation_encodings": [*e["activation_encodings"], e["activation_encodings"][1]]}
    ),
    "a whole number from -255 to 0 as 'offset'. Received: 3": lambda e: _first(e, offset=[3]),
    "0 as 'offset'. Received: -9": lambda e: _last(e, offset=[-9]),
    "'d/kernel' must have the scales of the weights.* channel 1": lambda e: _kernel(e),
}


def _first(found, **fields):
    first, *rest = found["activation_encodings"]
    return found | {"activation_encodings": [first | fields, *rest]}


def _last(found, **fields):
    *rest, last = found["activation_encodings"]
    return found | {"activation_encodings": [*rest, last | fields]}


def _kernel(found):
    (kernel,) = found["param_encodings"]
    scale = [kernel["scale"][0], kernel["scale"][1] * 2]
    return found | {"param_encodings": [kernel | {"scale": scale}]}


@pytest.mark.parametrize("expected", CHANGES)
def test_bad_files_change_nothing(expected, tmp_path):
    model = keras.Sequential([keras.Input((2,), name="x"), L.Dense(2, "relu", name="d")])
    q = networks.quantized(model)
    found = CHANGES[expected](kerasq.save_encodings(q, tmp_path / "e.json"))
    content = found if isinstance(found, bytes) else json.dumps(found).encode()
    (tmp_path / "e.json").write_bytes(content)
    q.get_layer("x_quantize").output_quantizer.assign_range(-7.0, 7.0)
    before = [v.numpy() for v in q.variables]
    with pytest.raises(ValueError, match=expected):
        kerasq.load_encodings(q, tmp_path / "e.json")
    for old, new in zip(before, q.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_models_that_have_none(tmp_path):
    model = networks.mlp()
    with pytest.raises(ValueError, match="must be a quantized model"):
        kerasq.save_encodings(model, tmp_path / "e.json")
    with pytest.raises(ValueError, match="has seen no data"):
        kerasq.save_encodings(kerasq.quantize_model(model), tmp_path / "e.json")
    assert not (tmp_path / "e.json").exists()
