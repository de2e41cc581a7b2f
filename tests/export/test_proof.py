"""A file that computes something else than its model is not written."""

import dataclasses
import platform

import keras
import numpy as np
import pytest

import kerasq
from kerasq import targets
from kerasq.calibration.samples import COUNT, samples_of
from kerasq.kernels import int8
from kerasq.targets import LITERT
from tests import networks

L = keras.layers
ADD = ("ADD", 8)


def one_more(layer, codes, grids, out):
    """LiteRT's ADD, and 1."""
    return int8.add(layer, codes, grids, out) + 1.0


def test_a_difference_is_an_error_that_names_the_layer(tmp_path, monkeypatch):
    monkeypatch.setitem(LITERT.kernels, ADD, one_more)
    q = networks.quantized(networks.residual())
    path = tmp_path / "model.tflite"
    text = r"differ in .* % of their values on 4 samples, first in layer 'add' \(ADD\).*check=False"
    with pytest.raises(ValueError, match=text):
        kerasq.export_tflite(q, path)
    assert not path.exists()
    lite = kerasq.export_tflite(q, path, check=False)
    assert path.read_bytes() == lite.content


def test_another_target_is_not_judged_by_these_kernels():
    target = dataclasses.replace(
        LITERT, name="own", runtime=None, kernels={**LITERT.kernels, ADD: one_more}
    )
    targets.register(target)
    try:
        kerasq.export_tflite(networks.quantized(networks.residual(), target="own"))
    finally:
        targets.TARGETS.pop("own")


@pytest.mark.parametrize("target", ["litert-x86-64", "litert-arm64"])
def test_a_target_that_names_another_processor(target, capsys):
    """Packed weights are rounded otherwise here: a step a layer is no fault, but is said."""
    lite = kerasq.export_tflite(networks.quantized(networks.mobile(), scheme="w4a8", target=target))
    assert "int4" in {tensor.type for tensor in lite.tensors}
    is_own = platform.machine() in targets.find(target).machines
    assert ("not of this processor" in capsys.readouterr().out) == (not is_own)
    assert any("expect other codes" in line for line in lite.remarks()) == (not is_own)


def test_float_layers_may_round_otherwise():
    """What follows a float layer may be a step off, and is a file all the same."""
    networks.set_seed(0)
    inner = keras.Input((6, 8), name="x")
    y = L.LayerNormalization()(L.Dense(8, name="front")(inner))
    model = keras.Model(inner, L.Dense(4, name="head")(L.Dense(8, activation="relu")(y)))
    kerasq.export_tflite(networks.quantized(model))


def test_float_operators_that_overflow():
    """Softplus is the logarithm of an exponential in LiteRT, and infinite from 89 on."""
    inner = keras.Input((4,))
    model = keras.Model(inner, keras.ops.softplus(100.0 * L.Dense(4, name="front")(inner)))
    q = kerasq.quantize_model(model, overrides={"softplus*": "float"})
    kerasq.calibrate(q, 10 * networks.data(q, 64))
    with pytest.raises(
        ValueError, match=r"in float layers, which LiteRT computes otherwise.*scale"
    ):
        kerasq.export_tflite(q)


def test_values_that_are_infinite_or_the_largest_are_no_fault():
    inner = keras.Input((4,))
    model = keras.Model(inner, keras.ops.power(L.ReLU()(L.Dense(4)(inner)), 40.0))
    q = kerasq.quantize_model(model, overrides={"power*": "float"})
    x = 100 * networks.data(q, 64)
    kerasq.calibrate(q, x)
    assert kerasq.export_tflite(q).predict(x).max() >= np.finfo("float32").max


def test_samples_are_the_first_that_were_calibrated_on():
    q = networks.quantized(networks.mlp())
    x = networks.data(q, 40, seed=3)
    kerasq.calibrate(q, x)
    np.testing.assert_array_equal(samples_of(q), x[:32])
    kerasq.calibrate(q, ((x[i : i + 2], np.zeros(2)) for i in (10, 20)))
    np.testing.assert_array_equal(samples_of(q), x[10:12])


def test_without_calibration_samples_are_random_values_of_the_ranges(tmp_path):
    inputs = {
        "a": keras.Input((5,), name="a"),
        "words": keras.Input((3,), dtype="int32", name="words"),
    }
    words = L.Flatten()(L.Embedding(4, 2)(inputs["words"]))
    y = L.Dense(2, name="head")(L.Concatenate()([L.Dense(3)(inputs["a"]), words]))
    q = kerasq.quantize_model(keras.Model(inputs, y))
    x = {"a": np.linspace(-3, 5, 40).reshape(8, 5), "words": np.ones((8, 3), "int32")}
    kerasq.calibrate(q, [x])
    q.save(tmp_path / "q.keras")
    found = samples_of(kerasq.load_model(tmp_path / "q.keras"))
    assert found["words"].dtype == np.int32 and not found["words"].any()
    assert found["a"].shape == (COUNT, 5)
    assert -3.1 < found["a"].min() < -2 and 4 < found["a"].max() < 5.1


def test_attention_between_an_image_and_a_sequence_is_told():
    image, sequence = keras.Input((1, 1, 3)), keras.Input((4, 3))
    y = L.Attention()([L.Dense(3)(image), L.Dense(3)(sequence)])  # Samples meet as queries.
    q = networks.quantized(keras.Model([image, sequence], y))
    with pytest.raises(ValueError, match=r"outputs of shape \[\(4, 4, 1, 3\)\] in a batch"):
        kerasq.export_tflite(q)


@pytest.mark.parametrize(
    "constant",
    [
        lambda y: L.Cropping1D(1)(keras.ops.ones_like(y, dtype="int32")),
        lambda y: keras.ops.cast(keras.ops.ones_like(y) > 0.5, "float32") * y,
    ],
    ids=["integers", "conditions"],
)
def test_what_the_converter_computes_by_itself_keeps_its_mark(constant):
    x = keras.Input((4, 3))
    y = L.Dense(3)(x)
    model = keras.Model(x, [y, constant(y)])
    data = np.random.default_rng(0).normal(size=(16, 4, 3)).astype("float32")
    q = networks.quantized(model, data)
    found = kerasq.export_tflite(q).predict(data).values()
    for a, b in zip(found, networks.run(q, data), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "operation",
    [
        lambda y: keras.ops.cumsum(y, axis=0),
        lambda y: keras.ops.diff(y, axis=0),
        lambda y: keras.ops.reshape(y, (-1, 2)),
    ],
    ids=["other values", "fewer rows", "more rows"],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_float_operations_that_mix_samples_are_told(operation, batch_size):
    x = keras.Input((5,))
    y = L.Dense(3)(operation(L.Dense(4)(x)))
    q = networks.quantized(keras.Model(x, y))
    with pytest.raises(ValueError, match=r"must compute each sample by itself.*flips and sums"):
        kerasq.export_tflite(q, batch_size=batch_size)
