import keras
import numpy as np
import pytest

import kerasq
from kerasq.analysis import cost
from tests import networks

L = keras.layers


def row(summary, name):
    return next(layer for layer in summary.layers if layer.name == name)


def test_rows_and_totals():
    q = networks.quantized(
        networks.mobile(), scheme="w4a8", overrides={"depthwise*": "w8a16", "sum": "float"}
    )
    summary = kerasq.summary(q)
    assert [layer.name for layer in summary.layers] == [layer.name for layer in q.layers[1:]]
    stem, wide = row(summary, "stem"), row(summary, "depthwise")
    assert (stem.op, stem.scheme, stem.shape) == ("CONV_2D", "w4a8", (6, 6, 8))
    assert (stem.activation_bytes, wide.activation_bytes) == (6 * 6 * 8, 6 * 6 * 16 * 2)
    assert row(summary, "sum").scheme == "float"
    assert row(summary, "sum").activation_bytes == 6 * 6 * 8 * 4
    assert summary.macs == sum(cost.macs(layer) for layer in q.layers[1:])
    assert summary.weight_bytes == sum(layer.weight_bytes for layer in summary.layers)
    assert summary.bit_operations == sum(layer.bit_operations for layer in summary.layers)
    printed = str(summary)
    assert f"{summary.macs:,}" in printed and f"{summary.peak_activation_bytes:,}" in printed


def test_peak_memory_of_a_residual_block():
    image = keras.Input((4, 4, 2), name="image")
    x = L.Conv2D(8, 1, name="first")(image)
    y = L.Conv2D(3, 1, name="narrow")(x)
    y = L.Conv2D(8, 1, name="wide")(y)
    z = L.Add(name="add")([x, y])
    z = L.Flatten(name="flat")(z)
    q = kerasq.quantize_model(keras.Model(image, z))
    # first (128) lives until add has run; there wide (128) and add (128) are alive as well.
    assert kerasq.summary(q).peak_activation_bytes == 3 * 128
    assert row(kerasq.summary(q), "flat").activation_bytes == 0


@pytest.mark.parametrize(("scheme", "size"), [("w8a8", 1), ("w8a16", 2)])
def test_the_table_of_an_embedding_counts_as_the_file_has_it(scheme, size):
    words = keras.Input((6,), dtype="int32", name="words")
    x = L.Embedding(50, 4, name="table")(words)
    model = keras.Model(words, L.Dense(3, name="dense")(x))
    data = np.random.default_rng(0).integers(0, 50, (64, 6))
    q = networks.quantized(model, data, scheme=scheme)
    lite = kerasq.export_tflite(q)
    (table,) = [x for x in lite.tensors if x.name.endswith("/table")]
    summary = kerasq.summary(q)
    dense = 4 * 3 + 3 * 4 * size
    assert summary.weight_bytes == table.bytes + dense == 50 * 4 * size + dense
    # Read in float as well, there is a table of floats beside it.
    both = keras.Model(words, [model.output, L.Dense(3, name="float")(x)])
    q = kerasq.quantize_model(both, scheme=scheme, overrides={"float": "float"})
    floats = 4 * (50 * 4 + 4 * 3 + 3)
    assert kerasq.summary(q).weight_bytes == 50 * 4 * size + dense + floats


def test_accumulators_need_data():
    q = kerasq.quantize_model(networks.mlp())
    assert row(kerasq.summary(q), "hidden").accumulator_bits is None
    assert row(kerasq.summary(q), "hidden").accumulator_bound == 8 + 8 + 3
    kerasq.calibrate(q, networks.data(networks.mlp()))
    assert row(kerasq.summary(q), "hidden").accumulator_bits <= 19 + 1
    assert row(kerasq.summary(q), "squash").accumulator_bits is None


def test_overflow_of_int32_is_flagged():
    """70,000 inputs, all weights and inputs at their largest: the sum needs 33 bits."""
    model = keras.Sequential([keras.Input((140_000,)), L.Dense(1, use_bias=False, name="sum")])
    model.layers[0].kernel.assign(np.ones((140_000, 1)))
    x = np.tile(np.float32([[0.0], [1.0]]), (1, 140_000))
    q = networks.quantized(model, x)
    summary = kerasq.summary(q)
    assert row(summary, "sum").accumulator_bits == 34
    assert row(summary, "sum").overflows
    assert "!34" in str(summary) and "can overflow: sum" in str(summary)
    wide = kerasq.summary(networks.quantized(model, x, scheme="w8a16"))
    assert not row(wide, "sum").overflows  # LiteRT sums these in int64


def test_a_float_layer_without_a_rule():
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(4, name="head"), L.LayerNormalization(name="norm")]
    )
    summary = kerasq.summary(kerasq.quantize_model(model, overrides={"norm": "float"}))
    assert row(summary, "norm").op == "LayerNormalization"
    assert row(summary, "norm").macs is None and row(summary, "norm").weight_bytes == 4 * 8
    assert "MACs not counted: norm" in str(summary)


def test_bad_models():
    with pytest.raises(ValueError, match="must be a quantized model"):
        kerasq.summary(networks.mlp())
    image = keras.Input((None, None, 3), name="image")
    q = kerasq.quantize_model(keras.Model(image, L.Conv2D(2, 3)(image)))
    with pytest.raises(ValueError, match=r"shape of a sample must be known.*'image'"):
        kerasq.summary(q)
