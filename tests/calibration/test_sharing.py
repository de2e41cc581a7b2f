"""Where parts of a tensor get few codes, `calibrate` says so."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.wrappers import input_boundaries
from tests import networks

L = keras.layers
SCALES = np.array([1, 10, 1000, 0.01, 50, 1, 200.0])


def table(count=300):
    rng = np.random.default_rng(0)
    return (rng.normal(1, 1, (count, 7)) * SCALES).astype("float32")


def network(first):
    layers = [L.Dense(8, activation="relu"), L.Dense(2, name="head")]
    return keras.Sequential([keras.Input((7,), name="features"), *first, *layers])


def test_features_of_other_sizes_are_named_with_what_helps(capsys):
    x = table()
    norm = L.Normalization(name="norm")
    norm.adapt(x)
    model = network([norm])
    q = kerasq.quantize_model(model, preprocessing="integer")
    kerasq.calibrate(q, x)
    printed = capsys.readouterr().out
    assert "Input 'features': 5 of its 7 features (0, 1, 3, 4, 5) lose more than a tenth" in printed
    assert "have 'norm' in front of it: quantize_model(..., preprocessing='float')" in printed
    want = networks.run(model, x)
    error = np.mean((networks.run(q, x) - want) ** 2) / np.var(want)
    # The advice is worth it.
    q = kerasq.quantize_model(model, preprocessing="float")
    capsys.readouterr()
    kerasq.calibrate(q, x)
    assert "lose" not in capsys.readouterr().out
    assert np.mean((networks.run(q, x) - want) ** 2) / np.var(want) < 0.01 * error


def test_what_helps_where_more_than_one_layer_reads_the_input(capsys):
    inputs = keras.Input((7,), name="features")
    h = L.Concatenate()([L.Rescaling(list(1 / SCALES), name="norm")(inputs), inputs])
    q = kerasq.quantize_model(keras.Model(inputs, L.Dense(2)(h)))
    kerasq.calibrate(q, table())
    advice = 'overrides={"features": "float", "norm": "float"}'
    assert f"leave that in float: {advice}." in capsys.readouterr().out


def test_what_helps_where_no_layer_scales_the_input(capsys):
    q = kerasq.quantize_model(network([]))
    kerasq.calibrate(q, table())
    assert "or begin it with a Normalization, adapted" in capsys.readouterr().out


@pytest.mark.parametrize("features", [1, 7])
def test_features_that_all_lie_far_from_0(features, capsys):
    """Pressures, temperatures: the grid reaches from 0 to them."""
    inputs = keras.Input((9, features), name="hPa")
    x = np.random.default_rng(0).normal(1013.25, 1.0, (64, 9, features))
    q = kerasq.quantize_model(keras.Model(inputs, L.Dense(2)(inputs)))
    kerasq.calibrate(q, x)
    said = "Input 'hPa': its features lose more than a tenth of their deviation, as they lie far"
    printed = capsys.readouterr().out
    assert f"{said} from 0 (at 1013.2" in printed and "begin it with a Normalization" in printed
    norm = L.Rescaling(1.0, -1013.25, name="norm")(inputs)
    q = kerasq.quantize_model(keras.Model(inputs, L.Dense(2)(norm)))
    kerasq.calibrate(q, x)
    advice = "have 'norm' in front of it: quantize_model(..., preprocessing='float')"
    assert advice in capsys.readouterr().out
    # Of a gain the model's own numbers say it, and no codes are lost.
    norm = L.Rescaling(0.5, -1013.25 / 2)(inputs)
    q = kerasq.quantize_model(keras.Model(inputs, L.Dense(2)(norm)))
    assert "In float, in front of the grid of input 'hPa'" in capsys.readouterr().out
    kerasq.calibrate(q, x)
    assert "lose" not in capsys.readouterr().out


def test_ranges_that_are_too_narrow_to_learn(capsys):
    x = 1e-11 * np.random.default_rng(0).normal(size=(64, 7))
    model = network([L.Rescaling(1e11)])
    kerasq.calibrate(kerasq.quantize_model(model, "w4a4"), x)
    printed = capsys.readouterr().out
    assert "Ranges of 'features_quantize_int4' learn, and are narrower than 1e-05" in printed
    for options in ({"preprocessing": "float"}, {"range_gradient": "none"}):
        kerasq.calibrate(kerasq.quantize_model(model, "w4a4", **options), x)
    assert "learn" not in capsys.readouterr().out


def test_values_below_any_range(capsys):
    q = kerasq.quantize_model(network([]))
    kerasq.calibrate(q, 1e-32 * np.random.default_rng(0).normal(size=(64, 7)))
    assert "and no range is narrower than 1e-30. Bring them to about" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_features_of_one_size_are_not_mentioned(factor, capsys):
    q = kerasq.quantize_model(network([]))
    x = factor * np.random.default_rng(0).normal(size=(64, 7))
    x[:, 3] = 5.0 * factor  # One that is constant has nothing to lose.
    kerasq.calibrate(q, x)
    assert "features" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gain", "kind", "is_shared"),
    [(1.0, "values", True), (16.0, "values", False), (1.0, "pixels", False)],
)
def test_an_input_that_is_concatenated_as_it_is(gain, kind, is_shared):
    """Where its own steps are hardly finer, and it is rounded by them, it is rounded only once."""
    networks.set_seed(0)
    inputs = keras.Input((16,))
    y = L.Rescaling(gain / 16)(L.Dense(16, kernel_initializer="ones")(inputs))
    model = keras.Model(inputs, L.Concatenate(name="both")([inputs, y]))
    x = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")
    x[:, 0] *= 3.0
    if kind == "pixels":
        x = np.random.default_rng(0).integers(0, 256, x.shape).astype("float32")
        x[0, :2] = 0.0, 255.0
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, x, method="minmax")
    (boundary,) = input_boundaries(q).values()
    own, both = boundary.grid().numpy(), q.get_layer("both").grid().numpy()
    found = networks.run(q, x)
    if is_shared:
        assert own.scale == both.scale and own.zero_point == both.zero_point
        want = networks.run(model, x)[:, :16]
        np.testing.assert_array_equal(found[:, :16], both.dequantize(both.quantize(want)))
    else:
        assert own.scale < both.scale or own.scale == 1.0
    np.testing.assert_array_equal(kerasq.export_tflite(q).predict(x), found)


def test_parts_of_a_concatenation_that_get_few_codes(capsys):
    image = keras.Input((8, 8, 1))
    h = L.Flatten()(L.Conv2D(4, 3, activation="relu")(image))
    boxes = L.Rescaling(100.0, name="boxes")(L.Dense(4)(h))
    scores = L.Dense(3, activation="softmax", name="scores")(h)
    model = keras.Model(image, L.Concatenate(name="both")([boxes, scores]))
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, np.random.default_rng(0).normal(size=(64, 8, 8, 1)))
    printed = capsys.readouterr().out
    assert "Layer 'both': what it takes from 'scores' has 1 codes in its grid" in printed
    # The advice: outputs of their own.
    model = keras.Model(image, [boxes, scores])
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, np.random.default_rng(0).normal(size=(64, 8, 8, 1)))
    assert "codes in its grid" not in capsys.readouterr().out
