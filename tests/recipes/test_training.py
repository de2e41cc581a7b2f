import dataclasses

import keras
import numpy as np
import pytest

from recipes import datasets, models, training

SETTINGS = training.FitSettings(
    epochs=3, batch_size=16, learning_rate=0.05, momentum=0.9, weight_decay=1e-3, augment=True
)


@pytest.fixture
def data():
    digits = datasets.load("digits")
    train = {"x_train": digits.x_train[:72], "y_train": digits.y_train[:72]}
    return dataclasses.replace(
        digits, **train, x_test=digits.x_test[:20], y_test=digits.y_test[:20]
    )


def fresh_model(data):
    keras.utils.set_random_seed(0)
    return models.build("cnn", data.image_shape, data.classes)


def test_each_epoch_holds_every_image_once(data):
    plain = dataclasses.replace(SETTINGS, augment=False)
    batches, steps = training.training_batches(data.x_train, data.y_train, plain)
    x = np.concatenate([x for x, _ in batches.take(steps)])
    assert steps == 5 and x.dtype == np.float32
    np.testing.assert_array_equal(np.sort(x.sum((1, 2, 3))), np.sort(data.x_train.sum((1, 2, 3))))
    assert not np.array_equal(x, data.x_train)


def test_batches_from_a_later_epoch_are_those_of_the_uninterrupted_run(data):
    whole, steps = training.training_batches(data.x_train, data.y_train, SETTINGS)
    later, _ = training.training_batches(data.x_train, data.y_train, SETTINGS, first_epoch=1)
    expected = list(whole.skip(steps).take(steps))
    for (x, y), (want_x, want_y) in zip(later.take(steps), expected, strict=True):
        np.testing.assert_array_equal(x, want_x)
        np.testing.assert_array_equal(y, want_y)
    first = next(iter(whole))
    assert not np.array_equal(first[0], expected[0][0])


def test_augmentation_keeps_labels_and_moves_pixels(data):
    plain = dataclasses.replace(SETTINGS, augment=False)
    x, y = next(iter(training.training_batches(data.x_train, data.y_train, plain)[0]))
    moved, same = next(iter(training.training_batches(data.x_train, data.y_train, SETTINGS)[0]))
    np.testing.assert_array_equal(y, same)
    assert moved.shape == x.shape and not np.array_equal(x, moved)


def test_resumed_training_ends_where_uninterrupted_training_ends(data, tmp_path, monkeypatch):
    whole = fresh_model(data)
    history = training.fit(whole, data, SETTINGS, tmp_path / "whole")

    end = training.EpochBackup.on_epoch_end

    def die_after_two(self, epoch, logs=None):
        end(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.EpochBackup, "on_epoch_end", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            training.fit(fresh_model(data), data, SETTINGS, tmp_path / "cut")
    keras.utils.set_random_seed(9)  # other initial weights: all must come from the backup
    resumed = models.build("cnn", data.image_shape, data.classes)
    resumed_history = training.fit(resumed, data, SETTINGS, tmp_path / "cut")

    assert len(resumed_history["loss"]) == 3
    np.testing.assert_allclose(resumed_history["loss"], history["loss"], rtol=1e-3)
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert int(resumed.optimizer.iterations.numpy()) == int(whole.optimizer.iterations.numpy())


def test_weight_decay_is_for_kernels_only(data):
    model = fresh_model(data)
    training.compile_model(model, SETTINGS, steps_per_epoch=5)
    model.optimizer.build(model.trainable_variables)
    decayed = {v.name for v in model.trainable_variables if model.optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}


def test_accuracy_counts_the_largest_output():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert training.accuracy(outputs, np.array([1, 0, 0])) == pytest.approx(2 / 3)
