"""Parts whose values are codes of 16 bits inside of a layer of 8."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq import layers
from kerasq.prepare import decompose
from tests import networks

L = keras.layers


def _average(parts, layer, name, x):
    """The average of two tensors, the sum of 16 bits."""
    with parts.wide():
        y = parts.call(L.Add(name=parts.name(name, "sum"), dtype="float32"), x)
        y = parts.scale(parts.name(name, "half"), y, 0.5, 0.0)
    return parts.call(layers.Requantize(name=name, dtype="float32"), y)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(decompose.PARTS, L.Average, _average)
    networks.set_seed(0)
    x = keras.Input((5,), name="x")
    a, b = (L.Dense(6, name=name)(x) for name in "ab")
    y = L.Average(name="average")([a, b])
    return keras.Model(x, L.Dense(3, name="head")(y))


@pytest.mark.parametrize(
    ("scheme", "widths"), [("w8a8", (16, 16, 8)), ("w4a8", (16, 16, 8)), ("w8a16", (16, 16, 16))]
)
def test_widths_and_file(model, scheme, widths):
    q = networks.quantized(model, scheme=scheme)
    parts = ["average_sum", "average_half", "average"]
    found = {x.name: x for x in kerasq.summary(q).layers}
    assert tuple(found[name].output_bits for name in parts) == widths
    assert found["average_half"].scheme == f"{scheme[:2]}a16"
    lite = kerasq.export_tflite(q, input_dtype="float32", output_dtype="float32")
    x = networks.data(model)
    np.testing.assert_array_equal(lite.predict(x), q.predict_on_batch(x))


def test_float_stays_float(model):
    q = kerasq.quantize_model(model, overrides={"average": "float"})
    assert type(q.get_layer("average")) is L.Average


def test_saved_and_loaded(model, tmp_path):
    q = networks.quantized(model)
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    x = networks.data(model)
    np.testing.assert_array_equal(networks.run(again, x), networks.run(q, x))


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_sensitivity_measures_what_is_quantized(model, scheme):
    x = networks.data(model, 64)
    base = kerasq.sensitivity(model, x, candidates=(scheme,)).base
    q = kerasq.quantize_model(model, scheme)
    kerasq.calibrate(q, x)
    assert base == pytest.approx(networks.sqnr(model, q, x), abs=1e-3)


def test_nothing_is_said_of_wide_parts(model, capsys):
    kerasq.quantize_model(model)
    assert "int16" not in capsys.readouterr().out
