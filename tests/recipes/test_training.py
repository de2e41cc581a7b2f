import dataclasses
import json

import keras
import numpy as np
import pytest

import kerasq
from recipes import datasets, models, training
from recipes.datasets import Samples

SETTINGS = training.FitSettings(
    epochs=3, batch_size=16, learning_rate=0.05, momentum=0.9, weight_decay=1e-3, augment=True
)


@pytest.fixture
def data():
    digits = datasets.load("digits")
    (x, y), (x_test, y_test) = digits.train, digits.test
    test = Samples(x_test[:20], y_test[:20])
    return dataclasses.replace(digits, train=Samples(x[:72], y[:72]), test=test)


def fresh_model(data):
    keras.utils.set_random_seed(0)
    return models.build("cnn", data.image_shape, data.classes)


def test_each_epoch_holds_every_image_once(data):
    plain = dataclasses.replace(SETTINGS, augment=False)
    batches, steps = training.training_batches(data.train, plain)
    x = np.concatenate([x for x, _ in batches.take(steps)])
    assert steps == 5 and x.dtype == np.float32
    np.testing.assert_array_equal(np.sort(x.sum((1, 2, 3))), np.sort(data.train.x.sum((1, 2, 3))))
    assert not np.array_equal(x, data.train.x)


def test_augmentation_keeps_labels_and_moves_pixels(data):
    plain = dataclasses.replace(SETTINGS, augment=False)
    x, y = next(iter(training.training_batches(data.train, plain)[0]))
    moved, same = next(iter(training.training_batches(data.train, SETTINGS)[0]))
    np.testing.assert_array_equal(y, same)
    assert moved.shape == x.shape and not np.array_equal(x, moved)


@pytest.mark.parametrize(("channels", "moves"), [(1, False), (3, True), (2, False)])
def test_images_in_colour_are_augmented_by_default(channels, moves):
    x = np.arange(16 * 8 * 8 * channels, dtype="float32").reshape(16, 8, 8, channels)
    settings = dataclasses.replace(SETTINGS, augment=None)
    images, _ = next(iter(training.training_batches(Samples(x, np.zeros(16, int)), settings)[0]))
    known = {image.tobytes() for image in x}
    assert moves == any(image.tobytes() not in known for image in images.numpy())


def test_resumed_training_ends_where_uninterrupted_training_ends(data, tmp_path, monkeypatch):
    whole = fresh_model(data)
    history, _, nothing = training.fit(whole, data, SETTINGS, tmp_path / "whole")

    assert nothing == 0
    end = kerasq.EpochBackup.on_epoch_end

    def die_after_two(self, epoch, logs=None):
        end(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kerasq.EpochBackup, "on_epoch_end", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            training.fit(fresh_model(data), data, SETTINGS, tmp_path / "cut")
    keras.utils.set_random_seed(9)  # other initial weights: all must come from the backup
    resumed = models.build("cnn", data.image_shape, data.classes)
    resumed_history, _, before = training.fit(resumed, data, SETTINGS, tmp_path / "cut")

    assert len(resumed_history["loss"]) == 3
    seconds = json.loads((tmp_path / "cut" / "history.json").read_text())["seconds"]
    assert len(seconds) == 3 and before == sum(seconds[:2]) > 0
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


def test_label_smoothing_is_in_the_loss(data, tmp_path):
    smooth = dataclasses.replace(SETTINGS, epochs=1, label_smoothing=0.2, learning_rate=0.0)
    model = fresh_model(data)
    history, *_ = training.fit(model, data, smooth, tmp_path)
    held_out = data.parts[1]
    p = model.predict(held_out.x.astype("float32"), verbose=0).astype(float)
    target = np.eye(10)[held_out.y] * 0.8 + 0.02
    assert history["val_loss"][0] == pytest.approx(-(target * np.log(p)).sum(-1).mean(), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_models_that_end_in_logits_learn_as_those_of_probabilities(data, tmp_path, smoothing):
    settings = dataclasses.replace(SETTINGS, epochs=1, label_smoothing=smoothing)
    losses = []
    for name in ("probabilities", "logits"):
        model = fresh_model(data)
        if name == "logits":
            model.layers[-1].activation = keras.activations.linear
        history, *_ = training.fit(model, data, settings, tmp_path / name)
        losses += [[history["loss"], history["val_loss"], history["val_accuracy"]]]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_labels_of_an_autoencoder_are_not_smoothed():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    with pytest.raises(ValueError, match=r"autoencoder.*Received: label_smoothing=0\.1"):
        training.compile_model(model, dataclasses.replace(SETTINGS, label_smoothing=0.1), 5)


@pytest.mark.parametrize("count", [1, 255, 257, 700])
def test_batches_to_evaluate_are_even(count):
    x, y = np.arange(count)[:, None], np.arange(count)
    batches = list(training.ordered_batches(Samples(x, y)))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), y)
    sizes = [len(x) for x, _ in batches]
    assert max(sizes) <= 256 and max(sizes) - min(sizes) < len(sizes)
