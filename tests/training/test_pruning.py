"""Pruning while fine-tuning: what goes, that it stays 0, and that a run goes on."""

import re

import keras
import numpy as np
import pytest

import kerasq
from kerasq.training.pruning import PATTERNS, pruned
from tests import networks

L = keras.layers


def samples(q, count=32):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (count, *q.input_shape[1:])).astype("float32")
    return x, np.arange(count) % q.output_shape[-1]


def compiled(q, optimizer=None):
    kerasq.calibrate(q, samples(q)[0])
    optimizer = optimizer or keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.01)
    q.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    return q


def quantized(make=networks.sequential, **options):
    return compiled(kerasq.quantize_model(make(), keep_zeros=True), **options)


def test_the_schedule_by_hand():
    pruning = kerasq.MagnitudePruning(0.8, epochs=4)
    shares = [0.8 * (1 - 27 / 64), 0.7, 0.8 * 63 / 64, 0.8, 0.8]
    np.testing.assert_allclose([pruning.sparsity_in(epoch) for epoch in range(5)], shares)
    pruning = kerasq.MagnitudePruning(0.8, epochs=2, initial_sparsity=0.4)
    np.testing.assert_allclose([pruning.sparsity_in(epoch) for epoch in range(2)], [0.75, 0.8])


def test_what_goes_first_by_hand():
    kernel = np.float32([[8, -1], [-3, 6], [5, 7], [2, -4]])
    ones = np.ones_like(kernel)
    expected = {
        ("unstructured", 0.5): [[1, 0], [0, 1], [1, 1], [0, 0]],
        # Two of each column, the smallest first; then others.
        ("2:4", 0.25): [[1, 0], [1, 1], [1, 1], [0, 1]],
        ("2:4", 0.5): [[1, 0], [0, 1], [1, 1], [0, 0]],
        ("2:4", 0.75): [[1, 0], [0, 0], [0, 1], [0, 0]],
        # Sums are 18 and 18.
        ("channels", 0.5): [[0, 1]] * 4,
        ("channels", 0.9): [[0, 1]] * 4,
    }
    for (pattern, share), mask in expected.items():
        np.testing.assert_array_equal(pruned(kernel, ones, share, pattern), mask, str(pattern))
    # What has gone stays, and counts.
    gone = np.float32([[1, 1], [1, 1], [0, 1], [1, 0]])
    found = pruned(kernel * gone, gone, 0.5, "unstructured")
    np.testing.assert_array_equal(found, [[1, 0], [1, 1], [0, 1], [0, 0]])
    # A third and a fourth of four that have gone are none that the other four keep.
    gone = np.float32([[0, 1], [0, 1], [0, 1], [0, 1]])
    found = pruned(kernel * gone, gone, 0.5, "2:4")
    np.testing.assert_array_equal(found, [[0, 0], [0, 1], [0, 1], [0, 0]])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_on_the_device(pattern):
    """Of each pattern, in the end: share, what `compression` says, and equal files."""

    def make():
        image = keras.Input((6, 6, 4))
        x = L.Conv2D(8, 3, use_bias=False, name="conv")(image)
        x = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x))
        x = L.DepthwiseConv2D(3, name="dw")(x)
        return keras.Model(image, L.Dense(3, name="head")(L.GlobalAveragePooling2D(name="g")(x)))

    q = quantized(make)
    x, y = samples(q)
    pruning = kerasq.MagnitudePruning(0.5, epochs=2, pattern=pattern)
    history = q.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[pruning]).history
    assert history["pruned"] == pytest.approx([0.4375, 0.5, 0.5], abs=0.07)
    left = {"unstructured": (), "2:4": ("dw",), "channels": ("head",)}[pattern]
    assert pruning.left == left and pruning.pruned_share == pytest.approx(0.5, abs=0.01)
    for row in kerasq.compression(q).layers:
        assert row.pattern == ("" if row.name in left else pattern)
        assert row.zeros >= 0.5 or row.name in left
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(lite.predict(x), q.predict_on_batch(x))


def test_no_output_loses_a_channel():
    """Heads: of a feature that others read, behind a Rescaling, and depthwise."""
    image = keras.Input((6, 6, 4))
    body = L.Conv2D(8, 3, activation="relu", name="body")(image)
    feature = L.Conv2D(8, 1, name="feature")(L.Conv2D(8, 1, activation="relu", name="mid")(body))
    dw = L.DepthwiseConv2D(3, name="dw")(L.Conv2D(6, 1, name="pw")(body))
    box = L.Rescaling(2.0, name="twice")(L.Dense(2, name="box")(L.GlobalMaxPooling2D()(feature)))
    model = keras.Model(image, [feature, L.GlobalAveragePooling2D(name="mean")(dw), box])
    q = kerasq.quantize_model(model, keep_zeros=True)
    kerasq.calibrate(q, x := networks.data(model))
    q.compile("sgd", ["mse"] * 3)
    pruning = kerasq.MagnitudePruning(0.5, epochs=1, pattern="channels")
    q.fit(x, model.predict(x, verbose=0), verbose=0, callbacks=[pruning])
    assert {*pruning.left} == {"feature", "pw", "dw", "box"}
    assert all(np.ptp(y, axis=tuple(range(y.ndim - 1))).all() for y in q.predict(x, verbose=0))
    assert q.get_layer("body").mask.numpy().mean() == 0.5


class Revived(keras.callbacks.Callback):
    """The largest stored weight, after any batch, that is pruned."""

    largest = 0.0

    def on_train_batch_end(self, batch, logs=None):
        wrapper = self.model.get_layer("conv")
        gone = wrapper.mask.numpy() == 0
        kernel = wrapper.rule.flatten(wrapper.kernel.value).numpy()
        self.largest = max(self.largest, np.abs(kernel[gone]).max(initial=0.0))


def test_neither_momentum_nor_averages_revive_what_is_pruned():
    optimizer = keras.optimizers.Adam(1e-2, weight_decay=0.1, use_ema=True, ema_momentum=0.5)
    q = quantized(optimizer=optimizer)
    x, y = samples(q)
    watch, pruning = Revived(), kerasq.MagnitudePruning(0.75, epochs=2, skip=["log*"])
    q.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[pruning, watch])
    wrapper = q.get_layer("conv")
    assert watch.largest == 0.0 and pruning.left == ("logits",)
    mask = wrapper.mask.numpy()
    assert mask.mean() == 0.25
    # Averages over steps before have taken the place of weights, and are 0 as well, as stored.
    np.testing.assert_array_equal(wrapper.rule.flatten(wrapper.kernel.value) == 0, mask == 0)
    assert q.get_layer("logits").mask.numpy().all()


def test_interrupted_training_goes_on(tmp_path):
    """As after a kill, by the state of an `EpochBackup`, to the last bit."""
    ends = []
    for parts in ((4,), (2, 4)):
        for until in parts:
            keras.utils.set_random_seed(until)
            q = quantized()
            x, y = samples(q)
            backup = kerasq.EpochBackup(tmp_path / str(len(parts)), "loss")
            start = backup.restore(q)
            pruning = kerasq.MagnitudePruning(0.8, epochs=3)
            options = {"batch_size": 8, "verbose": 0, "shuffle": False}
            q.fit(x, y, initial_epoch=start, epochs=until, callbacks=[pruning, backup], **options)
        ends.append([(w.flat_kernel().numpy(), w.mask.numpy()) for w in pruning.wrappers])
    assert pruning.pruned_share == pytest.approx(0.8, abs=0.01)
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sparsity": 0.0}, "`sparsity` must be in (0, 1)"),
        ({"sparsity": 1.0}, "`sparsity` must be in (0, 1)"),
        (
            {"sparsity": 0.5, "initial_sparsity": 0.5},
            "Received: sparsity=0.5, initial_sparsity=0.5",
        ),
        ({"sparsity": 0.5, "epochs": 0}, "`epochs` must be an integer of at least 1. Received: 0"),
        ({"sparsity": 0.5, "pattern": "3:4"}, "must be one of ['unstructured', '2:4', 'channels']"),
        ({"sparsity": 0.4, "pattern": "2:4"}, "`sparsity` must be 0.5 or more"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        kerasq.MagnitudePruning(**{"epochs": 1, **arguments})


def test_models_that_cannot_be_pruned():
    pruning = kerasq.MagnitudePruning(0.5, epochs=1)
    for options, text in (
        ({}, "'sequential', which keeps none. Quantize with keep_zeros=True"),
        (
            {"keep_zeros": True, "weights": "power_of_two", "scheme": "w4a8"},
            "'sequential', whose weights become powers of two",
        ),
    ):
        q = compiled(kerasq.quantize_model(networks.sequential(), **options))
        with pytest.raises(ValueError, match=re.escape(text)):
            q.fit(*samples(q), verbose=0, callbacks=[pruning])
    pruning = kerasq.MagnitudePruning(0.5, epochs=1, skip=["conv", "cnov"])
    with pytest.raises(ValueError, match=r"\['cnov'\], which fit none of \['conv', 'logits'\]"):
        q = quantized()
        q.fit(*samples(q), verbose=0, callbacks=[pruning])
