"""Comparisons and `where`: SELECT on codes, by conditions that are computed on int32."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.export.operators import threshold
from kerasq.grid import Grid
from tests import networks

L, K = keras.layers, keras.ops


def choices():
    """Conditions of a tensor, of two, of none in float, on either side; broadcast, and returned."""
    networks.set_seed(0)
    x, mask = keras.Input((5, 4), name="x"), keras.Input((5, 4), name="mask", dtype="bool")
    y = L.Dense(4, name="dense")(x)
    outputs = [
        K.where(x > 0, x, x * 0.3),
        L.ReLU()(K.where(x > y, x, y - 0.1)),
        K.where(x[..., :1] <= 0.25, y, 0.0),
        K.where(mask, y, -2.0 * np.ones((5, 4), "float32")),
        K.logical_and(y < 0.5, mask),
    ]
    return keras.Model([x, mask], outputs)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_choices(scheme, capsys):
    model = choices()
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(64, 5, 4)).astype("float32"), rng.normal(size=(64, 5, 4)) > 0]
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q)
    assert "float" not in capsys.readouterr().out and lite.float_ops == []
    names = [op.name for op in lite.ops]
    assert sum(name.startswith("SELECT") for name in names) == 4
    found, simulated = lite.predict(x), q.predict_on_batch(x)
    tolerance = 0.1 if scheme == "w8a8" else 0.02
    for name, y, want in zip(lite.output_names, simulated, networks.run(model, x), strict=True):
        np.testing.assert_array_equal(y, found[name])
        # Near the limit of a condition, another branch is right.
        assert np.mean(np.abs(y - np.float32(want)) > tolerance) < 0.02
    report = kerasq.compare(q, lite, x=[(tuple(x), None)])
    assert report.exact == 1.0 and max(layer.max_lsb or 0 for layer in report.layers) == 0


def test_sensitivity_of_a_choice():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, K.where(x > 0, x, x * 0.3))
    values = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    table = kerasq.sensitivity(model, values, candidates=("w8a8", "w8a16"))
    assert any(name.startswith("where") for name in table.layers)
    assert np.isfinite(table.alone).all()


FUNCTIONS = {
    "GREATER": np.greater,
    "GREATER_EQUAL": np.greater_equal,
    "LESS": np.less,
    "LESS_EQUAL": np.less_equal,
    "EQUAL": np.equal,
    "NOT_EQUAL": np.not_equal,
}


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("kind", list(FUNCTIONS))
def test_codes_compare_as_their_values_do(kind, is_first):
    grid = Grid(scale=np.float32(0.1), zero_point=np.int32(-3))
    codes = np.arange(-128, 128).astype(np.int8)
    real = grid.dequantize(codes)
    values = np.float32([0.0, 0.1, 0.05, -0.1, 3.0 * grid.scale, -99.0, 99.0, real[0], real[-1]])
    limits = threshold(kind, values, grid, is_first)
    assert limits.dtype == np.int32
    for value, limit in zip(values, limits, strict=True):
        pairs = [(real, value), (codes, limit)]
        want, found = (FUNCTIONS[kind](*pair[:: 1 if is_first else -1]) for pair in pairs)
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("name", ["equal", "not_equal", "greater", "greater_equal", "less_equal"])
def test_numbers_lie_on_the_grid_of_what_is_compared_with_them(name, scheme, tmp_path):
    # None of them is a value of a code, but for 0.
    values = np.float32([-1.0, 0.37, 3.0, -2.5, 4.1, 0.0])
    rng = np.random.default_rng(0)
    x = keras.Input((8,), name="x")
    compare = getattr(K, name)
    # Nothing is equal to what is beyond the grid, nor 0 to what is less than half a step from it.
    limits = [-1.0, 0.37, 3.0, -2.5, 50.0, 1e-6, -1e-6]
    model = keras.Model(x, [K.where(compare(x, limit), x, 0.0) for limit in limits])
    data = rng.choice(values, (64, 8)).astype("float32")
    q = networks.quantized(model, data, scheme=scheme)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    lite = kerasq.export_tflite(loaded)
    wanted, found = networks.run(model, data), lite.predict(data)
    simulated, trained = loaded.predict_on_batch(data), loaded(data, training=True)
    for output, want, y, t in zip(lite.output_names, wanted, simulated, trained, strict=True):
        np.testing.assert_allclose(y, want, atol=0.03)
        np.testing.assert_allclose(t, want, atol=0.03)
        np.testing.assert_array_equal(found[output], y)


def test_masking_of_a_number_that_no_code_has():
    steps = keras.Input((6, 3))
    x = L.GlobalAveragePooling1D()(L.Masking(mask_value=-1.0)(steps))
    model = keras.Model(steps, x)
    data = np.random.default_rng(0).normal(size=(64, 6, 3)).astype("float32")
    data[:, 4:] = -1.0
    lite = kerasq.export_tflite(networks.quantized(model, data))
    np.testing.assert_allclose(networks.run(model, data), lite.predict(data), atol=0.05)


def test_what_is_computed_in_float_around_a_choice(capsys):
    x = keras.Input((4,), name="x")
    y = L.Dense(4, name="dense")(x)
    limits = K.greater(y, [0.1, 0.2, 0.3, 0.4])
    model = keras.Model(x, [y, K.where(K.isnan(y), 0.0, y), K.where(limits, y, 1.0)])
    q = networks.quantized(model)
    lite = kerasq.export_tflite(q, check=False)
    printed = capsys.readouterr().out
    assert "(keras.ops, Isnan)." in printed and {op.name for op in lite.float_ops} == {"NOT_EQUAL"}
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    for name, simulated in zip(lite.output_names, networks.run(q, x), strict=True):
        np.testing.assert_array_equal(simulated, lite.predict(x)[name])
    # No code stands for infinity.
    kerasq.quantize_model(keras.Model(model.inputs, K.where(limits, y, -np.inf)))
    assert "(keras.ops, Where)." in capsys.readouterr().out
