"""What only scales an input: in float, in front of its grid, where features would be lost."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.layers import InputScale, Scale
from tests import networks

L = keras.layers
SIZES = np.array([1.0, 1000.0, 0.01, 50.0])


def table(count=64, seed=0):
    return (np.random.default_rng(seed).normal(1, 1, (count, 4)) * SIZES).astype("float32")


def normalization():
    layer = L.Normalization(name="norm")
    layer.adapt(table())
    return layer


def batch_norm():
    layer = L.BatchNormalization(name="norm")
    layer.build((None, 4))
    x = table()
    layer.set_weights([np.full(4, 0.5), np.full(4, 0.1), x.mean(0), x.var(0)])
    return layer


class Operators(L.Layer):
    def call(self, x):
        return (x - SIZES.astype("float32")) / SIZES.astype("float32")


LAYERS = {
    "Normalization": normalization,
    "BatchNormalization": batch_norm,
    "Rescaling": lambda: L.Rescaling(list(1 / SIZES), list(-np.ones(4)), name="norm"),
    "operators": lambda: Operators(name="norm"),
}


def network(*layers):
    networks.set_seed(0)
    head = [L.Dense(8, activation="relu"), L.Dense(2, name="head")]
    return keras.Sequential([keras.Input((4,), name="features"), *layers, *head])


def quantized(model, x, scheme="w8a8", **options):
    q = kerasq.quantize_model(model, scheme, **options)
    kerasq.calibrate(q, x)
    return q


def scales(q):
    return [layer for layer in q.layers if isinstance(layer, InputScale)]


@pytest.mark.parametrize("kind", LAYERS)
def test_features_of_other_sizes_are_scaled_in_front_of_the_grid(kind, capsys):
    model, x = network(LAYERS[kind]()), table()
    q = quantized(model, x)
    assert "In float, in front of the grid of input 'features'" in capsys.readouterr().out
    assert [layer.name for layer in q.layers[:3:2]] == ["features", "features_quantize"]
    want = networks.run(model, x)
    found = networks.run(q, x)
    assert np.square(found - want).mean() < 1e-3 * want.var()
    # Whoever feeds integers scales as well: `predict` does.
    lite = kerasq.export_tflite(q, check=False)
    assert "Input 'features' takes codes of x * gain + shift" in capsys.readouterr().out
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(x), found)
    (tensor,) = lite.inputs
    codes = tensor.grid.quantize(tensor.preprocessing(x))
    assert lite.predict(x[:0]).shape == (0, 2)
    assert codes.std(0).min() > 10
    # In the file, where that takes floats.
    lite = kerasq.export_tflite(q, input_dtype="float32")
    assert [op.name for op in lite.float_ops] == ["MUL", "ADD"]
    assert lite.inputs[0].preprocessing is None
    np.testing.assert_array_equal(lite.predict(x), found)


def test_gain_and_shift_are_those_of_the_layer_and_in_the_file(tmp_path):
    layer = normalization()
    q = quantized(network(layer), table(), "w8a16")
    kerasq.export_tflite(q, tmp_path / "m.tflite")
    found = kerasq.TFLiteModel(tmp_path / "m.tflite").inputs[0].preprocessing
    gain = 1 / np.sqrt(np.ravel(layer.variance))
    np.testing.assert_allclose(found.gain, gain, rtol=1e-6)
    np.testing.assert_allclose(found.shift, -np.ravel(layer.mean) * gain, rtol=1e-6)
    np.testing.assert_array_equal(found(table()), table() * found.gain + found.shift)


def test_layers_in_a_row_are_one():
    x = table()
    model = network(L.Rescaling(0.1), L.Rescaling(list(10 / SIZES), -1.0, name="norm"))
    (layer,) = scales(quantized(model, x))
    assert layer.name == "norm"
    np.testing.assert_allclose(layer.get_weights(), [1 / SIZES, -np.ones(4)], rtol=1e-6)


def test_a_gain_alone():
    layer = Scale(use_bias=False, constant=True, name="gain")
    layer.build((None, 4))
    layer.set_weights([1 / SIZES])
    x = table()
    q = quantized(network(layer), x)
    (found,) = scales(q)
    np.testing.assert_allclose(found.get_weights(), [1 / SIZES, np.zeros(4)], rtol=1e-6)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


@pytest.mark.parametrize(
    ("layers", "size"),
    [
        ([L.Rescaling(1 / 255)], 255.0),
        ([L.Normalization(mean=[120.0] * 4, variance=[3600.0] * 4)], 255.0),
        ([L.Rescaling([1.0, 0.5, 0.25, 0.1], -1.0)], 1.0),
        ([L.Rescaling(1.0, [-103.9, -116.8, -123.7, -120.0])], 255.0),
        ([L.Dense(4), L.Normalization(mean=SIZES, variance=SIZES**2)], 1.0),
        ([L.BatchNormalization()], 1.0),
        # A feature that has always been the same has nothing to lose.
        ([L.Normalization(mean=[1.0] * 4, variance=[1.0, 1.0, 0.0, 1.0])], 1.0),
    ],
    ids=["pixels", "images", "alike", "centred", "behind a layer", "untrained", "constant"],
)
def test_features_that_codes_tell_apart_stay_on_codes(layers, size, capsys):
    q = kerasq.quantize_model(network(*layers))
    assert not scales(q)
    assert "In float" not in capsys.readouterr().out


def test_a_mean_far_beyond_the_deviation_counts():
    """Kelvin: codes from 0 on leave hardly any to the days of a year."""
    for layer in (L.Normalization(axis=None, mean=290.0, variance=4.0), L.Rescaling(0.5, -145.0)):
        assert scales(kerasq.quantize_model(network(layer)))


def test_the_option(capsys):
    model, x = network(L.Rescaling(1 / 255, name="norm")), table()
    assert scales(kerasq.quantize_model(model, preprocessing="float"))
    assert not scales(kerasq.quantize_model(network(normalization()), preprocessing="integer"))
    # What `overrides` names stays what it asks for.
    for overrides in ({"norm": "w8a16"}, {"features": "float", "norm": "float"}):
        assert not scales(kerasq.quantize_model(network(normalization()), overrides=overrides))
    q = kerasq.quantize_model(network(normalization()), overrides={"norm": "w8a8"})
    assert scales(q)
    with pytest.raises(ValueError, match=r"`preprocessing` must be one of .*'float'.*'none'"):
        kerasq.quantize_model(model, preprocessing="none")
    del x, capsys


def test_an_input_that_others_read_too_stays_on_codes():
    inputs = keras.Input((4,))
    h = L.Concatenate()([normalization()(inputs), inputs])
    assert not scales(kerasq.quantize_model(keras.Model(inputs, L.Dense(2)(h))))


def test_two_inputs_of_one_normalization():
    norm = normalization()
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    left, right = norm(L.Rescaling(1.0)(a)), norm(L.Rescaling(0.5)(b))
    model = keras.Model([a, b], L.Dense(2)(L.Concatenate()([left, right])))
    x = [table(), 2 * table(seed=1)]
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, [x])
    lite = kerasq.export_tflite(q, input_dtype="uint8")
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    first, second = (tensor.preprocessing.gain for tensor in lite.inputs)
    np.testing.assert_allclose(second, 0.5 * first, rtol=1e-6)


def test_it_trains_saves_and_compares(tmp_path):
    x = table()
    q = quantized(network(batch_norm()), x)
    q.compile("sgd", "mse")
    before = scales(q)[0].get_weights()
    q.fit(x, np.zeros((64, 2)), epochs=2, verbose=0)
    assert not np.array_equal(before, scales(q)[0].get_weights())
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    # Not calibrated in this session, so that samples are random ones: raw, as a user has them.
    lite = kerasq.export_tflite(loaded)
    # Under a compiled model `predict` is XLA's.
    np.testing.assert_array_equal(lite.predict(x), q.predict(x, verbose=0))
    report = kerasq.compare(loaded, lite, x=x)
    assert (report.max_lsb, report.exact) == (0, 1.0)
    assert kerasq.summary(loaded).layers
