import keras
import numpy as np
import pytest

import kerasq
from tests import networks


def fitted(callbacks, epochs=4, calibrated=False, **options):
    """A residual network's variables after each epoch of training on two batches, by path."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (64, 12, 12, 3)).astype("float32"), np.arange(64) % 10
    q = kerasq.quantize_model(networks.residual(), **options)
    if calibrated:
        kerasq.calibrate(q, x)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    q.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    states = []

    def keep(epoch, logs):
        states.append({v.path: v.numpy() for v in q.weights})

    watch = keras.callbacks.LambdaCallback(on_epoch_end=keep)
    q.fit(x, y, epochs=epochs, verbose=0, callbacks=[*callbacks, watch])
    return q, states, (x, y)


def moved(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


def is_range(path):
    return path.split("/")[-1] in ("range_min", "range_max", "kernel_range", "batches_seen")


@pytest.mark.parametrize(
    ("range_gradient", "batch_norm"),
    [("lsq", "keep"), ("clip", "fold"), ("none", "keep")],
)
def test_ranges_and_statistics_stop_and_weights_train_on(range_gradient, batch_norm):
    options = {"range_gradient": range_gradient, "batch_norm": batch_norm}
    q, states, (x, y) = fitted([kerasq.FreezeRanges(2)], **options)
    early, late = moved(states[0], states[1]), moved(states[1], states[3])
    assert {path for path in early if is_range(path)}
    assert not {path for path in late if is_range(path) or "moving_" in path}
    assert {path.split("/")[-1] for path in late} >= {"kernel", "bias"}
    if batch_norm == "keep":
        assert {path for path in early if "moving_" in path}
        assert {path.split("/")[-1] for path in late} >= {"gamma", "beta"}
    # Nothing is left frozen.
    q.fit(x, y, verbose=0)
    assert {v.path for v in q.weights if is_range(v.path)} & moved(
        states[3], {v.path: v.numpy() for v in q.weights}
    )
    assert all(layer.trainable for layer in q.layers)


def test_layers_that_share_weights_move_again():
    x = keras.Input((8,), name="x")
    shared = keras.layers.Dense(8, name="shared")
    model = keras.Model(x, shared(keras.layers.ReLU()(shared(x))))
    q = kerasq.quantize_model(model, range_gradient="lsq")
    q.compile("sgd", "mse", jit_compile=False)
    data = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    trainable = [v.path for v in q.trainable_variables]
    q.fit(data, data, epochs=2, verbose=0, callbacks=[kerasq.FreezeRanges(1)])
    assert "shared/weights/kernel_range" in " ".join(trainable)
    assert [v.path for v in q.trainable_variables] == trainable


def test_frozen_from_the_start():
    q, states, (x, y) = fitted([kerasq.FreezeRanges(0)], epochs=2, calibrated=True)
    assert not {path for path in moved(states[0], states[1]) if is_range(path)}
    q.fit(x, y, verbose=0)  # The optimizer knows the ranges.


def test_frozen_without_data():
    with pytest.raises(ValueError, match=r"must have seen data before they are frozen.*'conv'"):
        fitted([kerasq.FreezeRanges(0)], epochs=1)


def test_what_was_frozen_stays_frozen_and_an_interruption_leaves_nothing():
    q, _, (x, y) = fitted([], epochs=1, calibrated=True)
    q.get_layer("branch").output_quantizer.trainable = False

    def stop(epoch, logs):
        raise KeyboardInterrupt

    interrupt = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        q.fit(x, y, verbose=0, callbacks=[kerasq.FreezeRanges(0), interrupt])
    assert not q.get_layer("add").output_quantizer.trainable
    q.fit(x, y, epochs=2, verbose=0, callbacks=[kerasq.FreezeRanges(1)])
    assert q.get_layer("add").output_quantizer.trainable
    assert not q.get_layer("branch").output_quantizer.trainable


def test_a_normalization_that_stays_float_stops():
    model, scheme = networks.residual(), {"branch": "float"}
    is_float = [x.name for x in model.layers if x.name == "branch_norm"]
    _, states, _ = fitted([kerasq.FreezeRanges(2)], overrides=scheme, batch_norm="keep")
    for a, b, want in ((0, 1, True), (1, 3, False)):
        found = {path for path in moved(states[a], states[b]) if path.startswith(*is_float)}
        assert any("moving_" in path for path in found) == want


def test_averages_of_variables():
    q = kerasq.quantize_model(networks.residual())
    q.compile(keras.optimizers.SGD(0.01, use_ema=True), "sparse_categorical_crossentropy")
    x = np.zeros((8, 12, 12, 3))
    with pytest.raises(ValueError, match=r"must keep no averages.*use_ema=True\. Compile with"):
        q.fit(x, np.zeros(8), verbose=0, callbacks=[kerasq.FreezeRanges(0)])


def test_bad_epoch():
    with pytest.raises(ValueError, match=r"at least 0, the first one\. Received: epoch=-1"):
        kerasq.FreezeRanges(-1)


def test_a_float_model():
    model = networks.residual()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="`model` must be a quantized model"):
        model.fit(
            np.zeros((8, 12, 12, 3)), np.zeros(8), verbose=0, callbacks=[kerasq.FreezeRanges(0)]
        )
