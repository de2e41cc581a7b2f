import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kerasq
from kerasq.analysis import beside_float
from tests import networks

L = keras.layers


def _points(events, tag):
    return {point.step: tf.make_ndarray(point.tensor_proto) for point in events.Tensors(tag)}


def test_ranges_are_curves_in_tensorboard(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (32, 12, 12, 3)).astype("float32"), np.arange(32) % 10
    q = kerasq.quantize_model(networks.residual())
    q.compile("sgd", "sparse_categorical_crossentropy")
    check = kerasq.CheckTraining(x)
    q.fit(x, y, epochs=3, verbose=0, callbacks=[check, kerasq.LogRanges(tmp_path)])
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["tensors"]
    assert {"ranges/branch/low", "ranges/branch/high", "ranges/branch/weights"} <= set(tags)
    assert not [tag for tag in tags if tag.startswith(("sqnr", "activations"))]
    points = _points(events, "ranges/branch/high")
    assert [*points] == [0, 1, 2]
    assert points[2] == np.float32(q.get_layer("branch").output_quantizer.range()[1])
    clipped = _points(events, "ranges/branch/clipped")
    assert clipped[2] == np.float32(check.clipped[-1]["branch"])


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A network after five epochs, of which the first and the last are written."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
    hidden = L.Dense(6, "relu", name="hidden")
    model = keras.Sequential([keras.Input((8,), name="x"), hidden, L.Dense(3, name="head")])
    q = kerasq.quantize_model(model)
    q.compile(keras.optimizers.SGD(0.05), "mse")
    folder = tmp_path_factory.mktemp("logs")
    log = kerasq.LogRanges(folder, x, every=4)
    q.fit(x, np.zeros((40, 3)), epochs=5, verbose=0, callbacks=[log])
    return q, x, EventAccumulator(str(folder)).Reload()


def _float_layers(q, x):
    """What the float network makes of samples, by NumPy."""
    kernels = {name: q.get_layer(name).kernel.numpy() for name in ("hidden", "head")}
    biases = {name: q.get_layer(name).bias.numpy() for name in kernels}
    hidden = np.maximum(x @ kernels["hidden"] + biases["hidden"], 0)
    return {"hidden": hidden, "head": hidden @ kernels["head"] + biases["head"]}


def test_sqnr_is_that_beside_the_float_network(logged):
    q, x, events = logged
    wanted, found = _float_layers(q, x)["head"], q.predict_on_batch(x)
    points = _points(events, "sqnr/head")
    assert [*points] == [0, 4]  # Of 40 samples, which are two batches.
    ratio = np.square(wanted).sum() / np.square(found - wanted).sum()
    assert points[4] == pytest.approx(10 * np.log10(ratio), abs=1e-3)
    grid = q.get_layer("x_quantize").grid().numpy()
    error = grid.dequantize(grid.quantize(x)) - x
    ratio = np.square(x).sum() / np.square(error).sum()
    assert _points(events, "sqnr/x_quantize")[4] == pytest.approx(10 * np.log10(ratio), abs=1e-3)


def test_histograms_are_of_float_values_and_weights(logged):
    q, x, events = logged
    values = {f"activations/{name}": y for name, y in _float_layers(q, x).items()}
    values["weights/hidden"] = q.get_layer("hidden").kernel.numpy()
    for tag, wanted in values.items():
        low, high, counts = _points(events, tag)[4].T
        assert low[0] == pytest.approx(wanted.min(), abs=1e-6)
        assert high[-1] == pytest.approx(wanted.max(), abs=1e-6)
        # Values that float32 puts on the other side of an edge.
        expected, _ = np.histogram(wanted, len(counts), (low[0], high[-1]))
        assert counts.sum() == wanted.size and np.abs(counts - expected).max() <= 1, tag


def test_clipped_is_noted_without_another_callback(logged):
    q, x, events = logged
    low, high = (float(end) for end in q.get_layer("head").output_quantizer.range())
    half = (high - low) / 255 / 2
    y = _float_layers(q, x)["head"]
    share = ((y < low - half) | (y > high + half)).mean()
    # Values of the simulation, next to those of the float network.
    assert _points(events, "ranges/head/clipped")[4] == pytest.approx(share, abs=2 / y.size)


def test_large_layers_are_drawn_from_over_all_channels(monkeypatch):
    monkeypatch.setattr(beside_float, "KEPT", 1000)
    q = kerasq.quantize_model(keras.Sequential([keras.Input((64, 4)), L.ReLU(name="relu")]))
    x = np.random.default_rng(0).uniform(0, 0.9, (32, 64, 4)) + np.arange(4)
    x = x.astype("float32")
    kerasq.calibrate(q, x)
    values = beside_float.observer(q)(x)["relu"].values
    assert len(values) == 1000 and set(values.tolist()) <= set(x.ravel().tolist())
    assert np.bincount(values.astype(int), minlength=4) == pytest.approx([250] * 4, abs=60)


def test_every_must_be_a_number_of_epochs(tmp_path):
    with pytest.raises(ValueError, match=r"`every` must be an integer of at least 1.*every=0"):
        kerasq.LogRanges(tmp_path, every=0)
