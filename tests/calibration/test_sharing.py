"""Where parts of a tensor get few codes, `calibrate` says so."""

import keras
import numpy as np
import pytest

import kerasq

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
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, x)
    printed = capsys.readouterr().out
    assert "Input 'features': 5 of its 7 features (0, 1, 3, 4, 5) lose more than a tenth" in printed
    advice = {"features": "float", "norm": "float"}
    assert 'overrides={"features": "float", "norm": "float"}' in printed
    want = model.predict(x, verbose=0)
    error = np.mean((q.predict(x, verbose=0) - want) ** 2) / np.var(want)
    # The advice is worth it.
    q = kerasq.quantize_model(model, overrides=advice)
    kerasq.calibrate(q, x)
    assert "features" not in capsys.readouterr().out
    assert np.mean((q.predict(x, verbose=0) - want) ** 2) / np.var(want) < 0.01 * error


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_features_of_one_size_are_not_mentioned(factor, capsys):
    q = kerasq.quantize_model(network([]))
    x = factor * np.random.default_rng(0).normal(size=(64, 7))
    x[:, 3] = 5.0 * factor  # One that is constant has nothing to lose.
    kerasq.calibrate(q, x)
    assert "features" not in capsys.readouterr().out


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
