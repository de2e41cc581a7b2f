"""Recurrent layers, step by step: the same function, and integer kernels that compute it."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph as graphs
from kerasq import unsupported
from kerasq.litert import flatbuffer
from kerasq.prepare.decompose import decompose
from kerasq.wrappers import ranged
from tests import networks

L = keras.layers
STEPS, FEATURES, UNITS = 3, 2, 3


def series(layer, states=0, shape=(STEPS, FEATURES)):
    """A model of one recurrent layer, its weights of any size and sign, biases too."""
    networks.set_seed(0)
    x = keras.Input(shape, name="x")
    given = [keras.Input((UNITS,), name=f"state_{i}") for i in range(states)]
    model = keras.Model([x, *given] if given else x, layer(x, initial_state=given or None))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(0.0, 0.7, weight.shape))
    return model


# Layers, and how many first states they are called with.
LAYERS = {
    "lstm": (lambda: L.LSTM(UNITS, name="r"), 0),
    "lstm_sequence": (lambda: L.LSTM(2, return_sequences=True, use_bias=False, name="r"), 0),
    "lstm_states": (lambda: L.LSTM(UNITS, return_state=True, name="r"), 2),
    "lstm_relu": (
        lambda: L.LSTM(2, activation="relu", recurrent_activation="hard_sigmoid", name="r"),
        0,
    ),
    "gru": (lambda: L.GRU(2, name="r"), 0),
    "gru_before": (lambda: L.GRU(2, reset_after=False, go_backwards=True, name="r"), 0),
    "gru_states": (
        lambda: L.GRU(UNITS, use_bias=False, return_sequences=True, return_state=True, name="r"),
        1,
    ),
    "simple": (lambda: L.SimpleRNN(2, return_state=True, dropout=0.1, name="r"), 0),
    "simple_relu": (lambda: L.SimpleRNN(2, activation="relu", name="r"), 0),
    "simple_linear": (lambda: L.SimpleRNN(2, activation=None, return_sequences=True, name="r"), 0),
    "cell": (lambda: L.RNN(L.GRUCell(2), name="r"), 0),
    "cells": (
        lambda: L.RNN([L.LSTMCell(2), L.SimpleRNNCell(3)], return_sequences=True, name="r"),
        0,
    ),
    "both_ways": (lambda: L.Bidirectional(L.GRU(2, return_sequences=True), name="r"), 0),
    "both_states": (lambda: L.Bidirectional(L.LSTM(UNITS), merge_mode="sum", name="r"), 4),
    "both_apart": (
        lambda: L.Bidirectional(
            L.SimpleRNN(2, return_state=True, return_sequences=True), merge_mode=None, name="r"
        ),
        0,
    ),
}
# Of images: layers, and the shape of a sample.
CONVOLUTIONAL = {
    "conv_1d": (
        lambda: L.ConvLSTM1D(2, 3, padding="same", dilation_rate=2, go_backwards=True, name="r"),
        (2, 5, 2),
    ),
    "conv_2d": (
        lambda: L.ConvLSTM2D(2, (3, 2), strides=2, return_sequences=True, name="r"),
        (2, 5, 5, 2),
    ),
    "conv_3d": (
        lambda: L.ConvLSTM3D(2, 2, padding="same", use_bias=False, return_state=True, name="r"),
        (2, 3, 3, 3, 1),
    ),
}
# Those that have all kinds of operators between them.
FILES = ["lstm_sequence", "gru_states", "both_apart", "conv_2d"]


def made(name):
    if name in CONVOLUTIONAL:
        make, shape = CONVOLUTIONAL[name]
        return series(make(), shape=shape)
    make, states = LAYERS[name]
    return series(make(), states)


def outputs(found):
    return list(found.values()) if isinstance(found, dict) else keras.tree.flatten(found)


@pytest.mark.parametrize("name", [*LAYERS, *CONVOLUTIONAL])
def test_the_parts_compute_the_same(name):
    model = made(name)
    parts = decompose(graphs.read(model))
    assert "r" in {node.layer.name for node in parts.nodes} or name == "both_apart"
    x = networks.data(model, 5)
    for want, got in zip(*(outputs(networks.run(m, x)) for m in (model, parts.model)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "target"),
    [(x, "litert") for x in (*LAYERS, *CONVOLUTIONAL)] + [(x, "tflm") for x in FILES],
)
def test_the_file_computes_what_the_model_does(name, target):
    model = made(name)
    x = networks.data(model, 24)
    q = networks.quantized(model, x, target=target)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    floats, want, got = map(outputs, (networks.run(model, x), networks.run(q, x), lite.predict(x)))
    for a, b, c in zip(floats, want, got, strict=True):
        np.testing.assert_array_equal(c, b)
        assert np.square(a - b).sum() < 0.01 * np.square(a).sum()


def test_a_state_that_goes_in_and_out_may_have_16_bits():
    model = made("gru_states")
    x = networks.data(model, 24)
    q = networks.quantized(model, x, overrides={"state_0": "w8a16"})
    lite = kerasq.export_tflite(q, check=False)
    assert [end.dtype.name for end in lite.inputs] == ["int8", "int16"]
    assert [end.dtype.name for end in lite.outputs] == ["int8", "int16"]
    for want, got in zip(*map(outputs, (networks.run(q, x), lite.predict(x))), strict=True):
        np.testing.assert_array_equal(got, want)


def test_parts_of_a_sequence_hand_their_states_over():
    networks.set_seed(0)
    x, shared = keras.Input((2 * STEPS, FEATURES), name="x"), L.GRU(2, return_state=True, name="r")
    _, state = shared(x[:, :STEPS])
    model = keras.Model(x, shared(x[:, STEPS:], initial_state=state)[0])
    data = networks.data(model, 8)
    q = networks.quantized(model, data)
    assert len(q.trainable_weights) == 4
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))


@pytest.fixture(scope="module")
def lstm():
    model = made("lstm")
    return model, networks.quantized(model)


def test_steps_have_one_set_of_weights(lstm):
    model, q = lstm
    assert sum(np.size(x) for x in q.get_weights() if np.size(x) > 1) == model.count_params()
    lite = kerasq.export_tflite(q, check=False)
    tensors = flatbuffer.read(lite.content).subgraphs[0].tensors
    kernels = [x.name.decode() for x in tensors if x.name.endswith(b"/kernel")]
    assert sorted(kernels) == ["r_input/kernel", "r_recurrent/kernel"]
    assert [op.name for op in lite.ops].count("FULLY_CONNECTED") == STEPS


def largest_cell(model, x):
    """Of Keras's own cell states, after each number of steps."""
    layer = L.LSTM(UNITS, return_state=True)
    layer.build(x.shape)
    layer.set_weights(model.get_weights())
    return max(np.abs(layer(x[:, :count])[2]).max() for count in range(1, STEPS + 1))


def test_ranges_are_those_of_all_steps(lstm):
    model, q = lstm
    cells = [x for x in q.layers if x.name.startswith("r_cell")]
    assert len(cells) == STEPS and len({id(x.output_quantizer) for x in cells}) == 1
    assert [name for name in ranged(q) if name.startswith("r_cell")] == [cells[0].name]
    found = float(cells[0].output_quantizer.range()[1])
    assert found == pytest.approx(largest_cell(model, networks.data(model)), rel=1e-5)


def test_training_moves_all_weights_and_each_range_once(lstm):
    model, _ = lstm
    q = kerasq.quantize_model(model)
    x = networks.data(model)
    q.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    before = [np.copy(v) for v in q.trainable_weights]
    assert len(before) == 3
    q.train_on_batch(x, np.ones((len(x), UNITS)))
    moved = [np.abs(v - w) for v, w in zip(q.trainable_weights, before, strict=True)]
    assert all((change > 1e-7).any() for change in moved)
    quantizers = ranged(q)
    assert {float(x.batches_seen) for x in quantizers.values()} == {1.0}
    # In the first batch, too, each step's values lie inside of the range.
    found = float(quantizers["r_cell"].range()[1])
    assert found == pytest.approx(largest_cell(model, x), rel=0.02)


def test_saved_and_loaded(lstm, tmp_path):
    model, q = lstm
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    x = networks.data(model)
    np.testing.assert_array_equal(networks.run(again, x), networks.run(q, x))
    assert len(ranged(again)) == len(ranged(q))
    assert len(again.weights) == len(q.weights)
    assert {x.output_quantizer.uses for x in again.layers if x.name.startswith("r_cell")} == {STEPS}


def test_a_layer_that_is_called_twice_has_one_kernel():
    networks.set_seed(0)
    shared = L.SimpleRNN(2, name="r")
    inputs = [keras.Input((STEPS, FEATURES), name=name) for name in "ab"]
    model = keras.Model(inputs, L.Add()([shared(x) for x in inputs]))
    q = networks.quantized(model)
    x = networks.data(model, 8)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert len(q.trainable_weights) == 3


def test_sensitivity_measures_what_is_quantized():
    model = made("simple_relu")
    x = networks.data(model, 64)
    base = kerasq.sensitivity(model, x, candidates=("w8a8",)).base
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, x)
    assert base == pytest.approx(networks.sqnr(model, q, x), abs=1e-3)


@keras.saving.register_keras_serializable("tests")
class Cell(L.SimpleRNNCell):
    pass


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (L.LSTM(2, name="r"), (None, 2), "with a fixed number of steps; give Input one"),
        (L.GRU(2, name="r"), (257, 2), "up to 256 steps; call it on parts of the sequence"),
        (L.GRU(2, name="r"), (4, 2, True), "with a tensor (samples, steps) as its mask"),
        (L.RNN(Cell(2), name="r"), (4, 2), "of Keras's own cells, not of Cell"),
        (L.LSTM(2, activation="softmax", name="r"), (4, 2), "of each value, not of softmax"),
    ],
)
def test_what_stays_a_loop_is_named_with_the_reason(layer, shape, reason, capsys):
    x = keras.Input(shape[:2], name="x")
    mask = x[..., :1] > 0.0 if shape[2:] else None
    y = L.Dense(2)(layer(x, mask=mask))
    q = kerasq.quantize_model(keras.Model(x, y))
    printed = capsys.readouterr().out
    assert "'r' (" in printed and reason in printed
    assert type(q.get_layer("r")) is type(layer)


def test_a_state_between_calls_is_refused():
    x = keras.Input(batch_shape=(1, STEPS, FEATURES), name="x")
    model = keras.Model(x, L.GRU(2, stateful=True, name="r")(x))
    with pytest.raises(ValueError, match=r"'r' \(GRU\): keeps its state .* by initial_state="):
        kerasq.quantize_model(model)


# Layers, how many first states they are called with, and where the mask comes from.
MASKED = {
    "lstm": (lambda: L.LSTM(2, name="r"), 0, "embedding"),
    "gru_sequence": (lambda: L.GRU(2, return_sequences=True, name="r"), 0, "masking"),
    "states": (lambda: L.SimpleRNN(UNITS, return_state=True, name="r"), 1, "argument"),
    "zeros": (
        lambda: L.RNN(
            L.SimpleRNNCell(UNITS),
            go_backwards=True,
            return_sequences=True,
            zero_output_for_mask=True,
            name="r",
        ),
        1,
        "argument",
    ),
    "cells": (lambda: L.RNN([L.SimpleRNNCell(2), L.SimpleRNNCell(3)], name="r"), 0, "argument"),
    # Which write zeros where a step of a sequence is masked.
    "both_ways": (
        lambda: L.Bidirectional(L.SimpleRNN(2, return_sequences=True), name="r"),
        0,
        "embedding",
    ),
}


def under_mask(name, *layers):
    """A recurrent layer under a mask: of words that are 0, of vectors that are, or an argument."""
    make, states, by = MASKED[name]
    networks.set_seed(0)
    given = [keras.Input((UNITS,), name=f"state_{i}") for i in range(states)]
    inputs = [keras.Input((STEPS, FEATURES), name="x")]
    options = {}
    if by == "embedding":
        inputs = [keras.Input((STEPS,), dtype="int32", name="x")]
        read = L.Embedding(5, FEATURES, mask_zero=True, name="words")(*inputs)
    elif by == "masking":
        read = L.Masking()(*inputs)
    else:
        inputs += [keras.Input((STEPS,), dtype="bool", name="mask"), *given]
        read, options = inputs[0], {"mask": inputs[1], "initial_state": given or None}
    y = make()(read, **options)
    for layer in layers:
        y = layer(y)
    model = keras.Model(inputs if inputs[1:] else inputs[0], y)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(0.0, 0.7, weight.shape))
    return model


def under_all_masks(model, by, count=32):
    """Samples under all masks of three steps there are, in turns."""
    rng = np.random.default_rng(0)
    mask = (np.arange(count)[:, None] >> np.arange(STEPS)) % 2 == 1
    if by == "embedding":
        return (rng.integers(1, 5, mask.shape) * mask).astype("int32")
    series, *others = networks.samples(model, count)
    return series * mask[..., None] if by == "masking" else [series, mask, *others[1:]]


@pytest.mark.parametrize(
    ("name", "target"),
    [(x, "litert") for x in MASKED] + [("lstm", "tflm"), ("gru_sequence", "tflm")],
)
def test_masked_steps_keep_the_states(name, target):
    model = under_mask(name)
    x = under_all_masks(model, MASKED[name][2])
    graph = graphs.read(model)
    parts = decompose(graph, frozenset(unsupported.without_kernel(graph, frozenset()))).model
    floats, same = (outputs(networks.run(m, x)) for m in (model, parts))
    q = networks.quantized(model, x, target=target)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == [] and "SELECT_V2" in {op.name for op in lite.ops}
    want, got = map(outputs, (networks.run(q, x), lite.predict(x)))
    for a, b, c, d in zip(floats, same, want, got, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)
        np.testing.assert_array_equal(d, c)
        assert np.square(a - c).sum() < 0.01 * np.square(a).sum()


def test_training_saving_and_loading_under_a_mask(tmp_path):
    model = under_mask("lstm", L.Dense(2, name="head"))
    x = under_all_masks(model, "embedding")
    # A word that is masked counts nowhere: its row gets no gradient.
    q = kerasq.quantize_model(model)
    before = [np.copy(v) for v in q.trainable_weights]
    q.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    q.train_on_batch(x, np.ones((len(x), 2)))
    moved = [np.abs(v - w) for v, w in zip(q.trainable_weights, before, strict=True)]
    assert len(moved) == 6 and all((change > 1e-7).any() for change in moved)
    assert moved[0].shape == (5, FEATURES) and not moved[0][0].any() and moved[0][1:].all()
    assert {float(y.batches_seen) for y in ranged(q).values()} == {1.0}
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(networks.run(again, x), networks.run(q, x))


def test_states_under_a_mask_have_a_range_for_all_steps():
    networks.set_seed(0)
    x, state = keras.Input((4, 3), name="x"), keras.Input((5,), name="state")
    mask = keras.Input((4,), name="mask")
    rnn = L.SimpleRNN(5, activation="linear", name="rnn", return_sequences=True)
    y = rnn(x, initial_state=[state], mask=keras.ops.greater(mask, 0.5))
    model = keras.Model([x, state, mask], y)
    rnn.cell.recurrent_kernel.assign(0.1 * rnn.cell.recurrent_kernel)
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(16, 4, 3)), rng.normal(size=(16, 5)), np.ones((16, 4))]
    data[0] *= np.array([8, 1, 0.1, 0])[:, None]  # The last states are not the largest.
    q = networks.quantized(model, [a.astype("float32") for a in data])
    high = float(q.get_layer("rnn_state").output_quantizer.range()[1])
    states = networks.run(model, data)
    assert np.abs(states[:, -1]).max() < 0.5 * np.abs(states).max()
    assert high >= 0.999 * np.abs(states).max()


@pytest.mark.parametrize("recurrence", ["unrolled", "fused"])
def test_dropout_of_what_steps_read(recurrence, capsys):
    """Of the same features in all steps; that of states is said to be left out."""
    networks.set_seed(0)
    x = keras.Input((5, 4), name="x")
    lstm = L.LSTM(3, dropout=0.5, recurrent_dropout=0.2, name="lstm")
    model = keras.Model(x, L.Bidirectional(lstm, name="both")(x))
    q = kerasq.quantize_model(model, recurrence=recurrence)
    assert "Left out in training: recurrent_dropout of 'both'." in capsys.readouterr().out
    kerasq.calibrate(q, data := networks.data(model, 32))
    dropouts = [layer for layer in q.layers if isinstance(layer, L.Dropout)]
    assert len(dropouts) == 2
    ones = np.asarray(dropouts[0](np.ones((8, 5, 4), np.float32), training=True))
    assert set(ones.flat) == {0.0, 2.0} and np.ptp(ones, axis=1).max() == 0.0
    one, other = (np.asarray(q(data, training=True)) for _ in range(2))
    assert (one != other).any()
    np.testing.assert_array_equal(
        kerasq.export_tflite(q, check=False).predict(data), networks.run(q, data)
    )
