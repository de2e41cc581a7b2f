"""LSTMs as one operator: which fit, and that file and simulation agree to the last code."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.layers import SequenceLSTM
from kerasq.lstm_wrapper import LstmWrapper
from kerasq.quantizers import activations
from tests import networks

L = keras.layers
STEPS, FEATURES, UNITS = 5, 3, 4


def series(*layers):
    """A model of recurrent layers, their weights of any size and sign, biases too."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((STEPS, FEATURES), name="x"), *layers])
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(0.0, 0.7, weight.shape))
    return model


def quantized(model, x=None, **options):
    return networks.quantized(model, x, recurrence="fused", **options)


@pytest.fixture(scope="module")
def stacked():
    model = series(
        L.LSTM(UNITS, return_sequences=True, name="first"),
        L.LSTM(UNITS - 1, use_bias=False, unroll=True, name="last"),
        L.Dense(2, name="head"),
    )
    x = networks.data(model, 64)
    return model, x, quantized(model, x)


def test_the_file_computes_what_the_model_does(stacked):
    model, x, q = stacked
    lite = kerasq.export_tflite(q, check=False)
    ops = [op.name for op in lite.ops]
    assert ops.count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 2 and lite.float_ops == []
    want = networks.run(q, x)
    np.testing.assert_array_equal(lite.predict(x), want)
    assert networks.sqnr(model, q, x) > 25


BOTH = [
    lambda: L.LSTM(UNITS, go_backwards=True, return_sequences=True, name="r"),
    lambda: L.LSTM(UNITS, go_backwards=True, name="r"),
    lambda: L.Bidirectional(L.LSTM(UNITS, return_sequences=True), name="r"),
    lambda: L.Bidirectional(
        L.LSTM(UNITS), backward_layer=L.LSTM(UNITS, go_backwards=True, use_bias=False), name="r"
    ),
    lambda: L.Bidirectional(L.LSTM(UNITS, return_sequences=True), merge_mode="sum", name="r"),
    lambda: L.Bidirectional(L.LSTM(UNITS), merge_mode="ave", name="r"),
    lambda: L.Bidirectional(L.LSTM(UNITS), merge_mode="mul", name="r"),
]


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("make", BOTH)
def test_from_both_ends(make, target):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    model = series(make())
    x = networks.data(model, 64)
    q = quantized(model, x, target=target)
    lite = kerasq.export_tflite(q, check=False)
    ops = [op.name for op in lite.ops]
    assert ops.count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 1 + (
        "Bidir" in type(model.layers[0]).__name__
    )
    assert lite.float_ops == [] and "FULLY_CONNECTED" not in ops
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 25


def test_two_ends_that_are_not_merged():
    x = keras.Input((STEPS, FEATURES))
    ends = L.Bidirectional(L.LSTM(UNITS), merge_mode=None, name="r")(x)
    model = keras.Model(x, [L.Dense(2)(ends[0]), L.Dense(3)(ends[1])])
    data = networks.data(model, 32)
    q = quantized(model, data)
    found = kerasq.export_tflite(q, check=False).predict(data)
    for a, b in zip(found.values(), networks.run(q, data), strict=True):
        np.testing.assert_array_equal(a, b)


def test_states_begin_with_zeros_in_each_call(stacked):
    _, x, q = stacked
    lite = kerasq.export_tflite(q, check=False)
    again = kerasq.TFLiteModel(lite.content, kernels="reference")
    for _ in range(2):
        np.testing.assert_array_equal(again.predict(x[:3]), lite.predict(x[:3]))


def test_states_begin_with_zeros_on_tflite_micro(stacked):
    pytest.importorskip("tflite_micro")
    model, x, _ = stacked
    q = quantized(model, x, target="tflm")
    lite = kerasq.export_tflite(q, check=False)
    for _ in range(2):
        np.testing.assert_array_equal(lite.predict(x[:3]), networks.run(q, x)[:3])


def test_the_float_loop_is_that_of_keras(stacked):
    model, x, q = stacked
    wrapper = q.get_layer("first")
    want = networks.run(keras.Model(model.inputs, model.layers[0].output), x)
    np.testing.assert_allclose(wrapper.run_float(x), want, rtol=0, atol=1e-5)


def test_the_cell_has_the_bits_that_its_largest_value_needs(stacked):
    _, _, q = stacked
    wrapper = q.get_layer("first")
    before = float(wrapper.cell_peak.value)
    assert 0.1 < before < STEPS
    try:
        for peak, bits in [(0.3, 0), (1.0, 0), (1.01, 1), (9.0, 4), (63.0, 6), (1e3, 6), (0.0, 4)]:
            wrapper.cell_peak.assign(peak)
            assert int(wrapper.cell_bits()) == bits
    finally:
        wrapper.cell_peak.assign(before)


@pytest.mark.parametrize("seed", range(3))
def test_gates_that_are_out_of_all_bounds_are_equal_too(seed):
    model = series(L.LSTM(UNITS, return_sequences=True, name="r"))
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.normal(0.0, 10.0 ** rng.uniform(-3, 2), weight.shape))
    model.weights[0][:, :UNITS].assign(np.zeros((FEATURES, UNITS)))
    x = networks.data(model, 32)
    q = quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


def test_training_moves_all_weights_and_ranges(stacked):
    model, x, _ = stacked
    q = kerasq.quantize_model(model, recurrence="fused")
    q.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    before = [np.copy(v) for v in q.trainable_weights]
    y = np.ones((len(x), 2))
    losses = [q.train_on_batch(x, y) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    moved = [np.abs(v - w).max() for v, w in zip(q.trainable_weights, before, strict=True)]
    assert len(moved) == 7 and min(moved) > 1e-4
    wrapper = q.get_layer("last_steps")
    assert float(wrapper.output_quantizer.batches_seen) >= activations.FIRST_BATCHES
    assert float(wrapper.cell_peak.value) > 0.1
    # Training computes as inference does, but for the rounding of gates.
    apart = np.abs(q(x, training=True) - networks.run(q, x)).max()
    assert apart < 0.05 * np.abs(networks.run(q, x)).max()


def test_saved_and_loaded(stacked, tmp_path):
    _, x, q = stacked
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    assert isinstance(again.get_layer("first"), LstmWrapper)
    np.testing.assert_array_equal(networks.run(again, x), networks.run(q, x))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: L.LSTM(2, name="r"), {"overrides": {"r": "w8a16"}}),
        (lambda: L.LSTM(2, name="r"), {"overrides": {"r": "w4a8"}}),
        (lambda: L.LSTM(2, activation="relu", name="r"), {}),
        (lambda: L.LSTM(2, recurrent_activation="hard_sigmoid", name="r"), {}),
        (lambda: L.LSTM(2, stateful=False, name="r", activation="linear"), {}),
        (lambda: L.Bidirectional(L.GRU(2), name="r"), {}),
        (lambda: L.GRU(2, name="r"), {}),
    ],
)
def test_what_does_not_fit_is_unrolled(make, options):
    q = kerasq.quantize_model(series(make(), L.Dense(2)), recurrence="fused", **options)
    assert not any(isinstance(x, LstmWrapper) for x in q.layers)
    assert not any(isinstance(x, SequenceLSTM) for x in q.layers)
    assert len(q.layers) > 10


def test_a_layer_that_is_called_twice_is_unrolled():
    shared = L.LSTM(2, name="r")
    inputs = [keras.Input((STEPS, FEATURES), name=name) for name in "ab"]
    model = keras.Model(inputs, L.Add()([shared(x) for x in inputs]))
    q = kerasq.quantize_model(model, recurrence="fused")
    assert not any(isinstance(x, LstmWrapper) for x in q.layers)


@pytest.mark.parametrize(
    ("options", "is_fused"),
    [
        ({}, False),
        ({"target": "ethos-u"}, False),
        ({"target": "tflm"}, True),
        ({"target": "tflm", "recurrence": "unrolled"}, False),
        ({"target": "tflm", "scales": "power_of_two"}, False),
        ({"target": "tflm", "weights": "ternary"}, False),
        ({"target": "tflm", "keep_clusters": True}, False),
        ({"target": "tflm", "keep_zeros": True}, True),
    ],
)
def test_what_it_is_by_default(options, is_fused):
    q = kerasq.quantize_model(series(L.LSTM(2, name="r")), **options)
    assert any(isinstance(x, LstmWrapper) for x in q.layers) == is_fused


def test_options_are_checked():
    model = series(L.LSTM(2, name="r"))
    with pytest.raises(
        ValueError, match=r"one of \['auto', 'unrolled', 'fused'\]. Received: .*'both'"
    ):
        kerasq.quantize_model(model, recurrence="both")
    with pytest.raises(ValueError, match=r"'unrolled' on a target .* Received: .*target='ethos-u'"):
        kerasq.quantize_model(model, recurrence="fused", target="ethos-u")
